# Registered memory: the ranges a worker's messages need not register again.


@cython.final
cdef class Registration:
    """A range of memory that UCX has registered."""

    cdef ucp_mem_h handle
    cdef readonly size_t address
    cdef readonly size_t nbytes
    cdef Py_ssize_t uses
    cdef bint doomed


@cython.final
cdef class Registry:
    """The registrations of one context, and how often messages found theirs."""

    cdef ucp_context_h context  # NULL of an adopted worker and once closed
    cdef list held
    cdef Py_ssize_t made, hits, misses

    def __cinit__(self):
        self.held = []

    cdef int add(self, size_t address, size_t nbytes) except -1:
        if self.context == NULL:
            raise TransportError(
                "memory cannot be registered on a UCP worker that hetcomm shares, for UCP does not tell its context",
                remedy="Leave it out: UCX registers what it needs by itself.",
            )
        if nbytes == 0 or self.find(address, nbytes) is not None:
            return 0
        cdef ucp_mem_map_params_t params
        memset(&params, 0, sizeof(params))
        params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH
        params.address = <void*>address
        params.length = nbytes
        cdef Registration memory = Registration.__new__(Registration)
        _check(ucp_mem_map(self.context, &params, &memory.handle), "ucp_mem_map")
        memory.address = address
        memory.nbytes = nbytes
        self.held.append(memory)
        self.made += 1
        return 0

    cdef Py_ssize_t drop(self, size_t address, size_t nbytes) except -1:
        """Forget what touches the range; how many there were."""
        cdef Registration memory
        hit = [memory for memory in self.held
               if (<Registration>memory).address < address + nbytes
               and address < (<Registration>memory).address + (<Registration>memory).nbytes]
        for memory in hit:
            self.held.remove(memory)
            memory.doomed = True
            self.release(memory)
        return len(hit)

    cdef Registration find(self, size_t address, size_t nbytes):
        cdef Registration memory
        for item in self.held:
            memory = <Registration>item
            if memory.address <= address and address + nbytes <= memory.address + memory.nbytes:
                self.hits += 1
                return memory
        self.misses += 1
        return None

    cdef int release(self, Registration memory) except -1:
        """Give a range that was dropped back to UCX, unless a message under way still uses it."""
        if memory.doomed and memory.uses == 0 and memory.handle != NULL and self.context != NULL:
            ucp_mem_unmap(self.context, memory.handle)
            memory.handle = NULL
        return 0

    cdef int clear(self) except -1:
        for memory in self.held:
            (<Registration>memory).doomed = True
            self.release(<Registration>memory)
        self.held.clear()
        self.context = NULL
        return 0
