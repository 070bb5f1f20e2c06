# What all waiting goes through: a UCP worker with its context, its peers, and what a sleeper watches.

cdef enum:
    GRACE_TURNS = 2000         # turns given to what is nearly over: cancelled requests, a dead peer's last messages

# How UCX calls, in ucp_worker_print_info, the memory that a worker can reach besides the host's.
cdef dict DEVICE_MEMORY = {
    UCS_MEMORY_TYPE_CUDA: "endpoint for NVIDIA GPU memory",
    UCS_MEMORY_TYPE_ROCM: "endpoint for AMD/ROCm GPU memory",
}


@cython.final
cdef class Engine:
    """A UCP worker and its peers; whether two threads use it at once is its owner's business."""

    cdef ucp_context_h context  # NULL of an adopted worker
    cdef ucp_worker_h worker    # NULL before `open` or `adopt` and after `close`
    cdef bint owned
    cdef uint64_t memory_types
    cdef bytes address
    cdef bint takes_offers      # messages of programs are received into host memory only
    cdef Py_ssize_t taken       # offers
    cdef dict peers
    cdef unsigned int failures
    cdef Views views            # of memory that peers share
    cdef Shelf shelf
    cdef size_t longest_shelved
    cdef Watch watch
    cdef object interruption
    cdef object companion
    cdef object herald          # says which peers are dead, and when it has something new to say

    def __cinit__(self):
        self.memory_types = 1 << UCS_MEMORY_TYPE_HOST
        self.peers = {}
        self.watch = Watch()
        self.shelf = Shelf.__new__(Shelf)
        self.longest_shelved = LONGEST_SHELVED

    cdef tuple open(self, dict options):
        """Make a context and a worker; returns the names of the options this UCX does not know."""
        cdef ucp_config_t* config
        cdef ucp_params_t params
        cdef ucp_worker_params_t worker_params
        cdef ucp_context_attr_t attributes
        cdef ucs_status_t status
        major, minor, _ = _version()
        _check(ucp_config_read(NULL, NULL, &config), "ucp_config_read")
        unknown = []
        for name, value in options.items():
            if ucp_config_modify(config, name.encode(), value.encode()) != UCS_OK:
                unknown.append(name)
        memset(&params, 0, sizeof(params))
        params.field_mask = UCP_PARAM_FIELD_FEATURES
        params.features = UCP_FEATURE_TAG | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP
        # The library's own version, not the headers': ucp_init() would pass the latter.
        status = ucp_init_version(major, minor, &params, config, &self.context)
        ucp_config_release(config)
        _check(status, "ucp_init_version")
        memset(&attributes, 0, sizeof(attributes))
        attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES
        _check(ucp_context_query(self.context, &attributes), "ucp_context_query")
        self.memory_types = attributes.memory_types
        memset(&worker_params, 0, sizeof(worker_params))
        worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS
        worker_params.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK  # sends to a dead peer never end
        worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED
        status = ucp_worker_create(self.context, &worker_params, &self.worker)
        if status != UCS_OK:
            self.worker = NULL
            ucp_cleanup(self.context)
            self.context = NULL
        _check(status, "ucp_worker_create")
        self.owned = True
        self.start()
        return tuple(unknown)

    cdef int adopt(self, size_t handle) except -1:
        """Use the worker of another owner, as it is.

        Raises:
            UsageError: It is not made for several threads.
        """
        cdef ucp_worker_attr_t attributes
        cdef ucp_worker_h worker = <ucp_worker_h>handle
        memset(&attributes, 0, sizeof(attributes))
        attributes.field_mask = UCP_WORKER_ATTR_FIELD_THREAD_MODE
        _check(ucp_worker_query(worker, &attributes), "ucp_worker_query")
        if attributes.thread_mode != UCS_THREAD_MODE_MULTI:
            raise UsageError(
                "argument 'worker' is a UCP worker for one thread at a time; its owner's might meet hetcomm's in it",
                remedy="Make it with UCS_THREAD_MODE_MULTI, as UCXX and ucx-py do, on a UCX built with --enable-mt.",
            )
        self.worker = worker
        text = _printed(worker, NULL)
        for kind, name in DEVICE_MEMORY.items():
            if name in text:
                self.memory_types |= <uint64_t>1 << <int>kind
        return self.start()

    cdef int start(self) except -1:
        cdef ucp_address_t* address
        cdef size_t length
        cdef int event_fd = -1
        # The descriptor of a shared worker is its owner's: whoever progresses first takes the event from the other.
        if not self.owned or ucp_worker_get_efd(self.worker, &event_fd) != UCS_OK:
            event_fd = -1
        self.watch.add(event_fd)
        _check(ucp_worker_get_address(self.worker, &address, &length), "ucp_worker_get_address")
        try:
            name = (<char*>address)[:length]
        finally:
            ucp_worker_release_address(self.worker, address)
        self.takes_offers = self.memory_types == 1 << UCS_MEMORY_TYPE_HOST
        self.address = (OWN if self.owned else SHARED) + _process_mark() + self._flags() + name
        return 0

    cdef bytes _flags(self):
        return (<int>self.takes_offers).to_bytes(HEADER - OFFERS, "little")

    cdef int decline_offers(self) except -1:
        self.takes_offers = False
        self.address = self.address[:OFFERS] + self._flags() + self.address[HEADER:]
        return 0

    cdef int connect(self, int number, bytes address, size_t endpoint) except -1:
        """Add a peer, over somebody else's `endpoint`, or with 0 over the one kept for it or a new one."""
        cdef Peer peer = Peer.__new__(Peer)
        cdef Peer kept = None if endpoint else _kept.pop((self.address, address), None)
        cdef ucp_ep_h ep = <ucp_ep_h>endpoint
        if kept is not None and kept.link.failed == UCS_OK:
            peer = kept
            ep = kept.link.ep
        peer.number = number
        peer.address = address
        peer.borrowed = endpoint != 0
        peer.sent = False
        peer.link.failures = &self.failures
        peer.open(self.worker, self.address, self.watch, ep)
        self.peers[number] = peer
        if self.watch.count > (os.cpu_count() or 1):  # its own descriptor stands for this process
            self.longest_shelved = LONGEST_SHELVED_IN_CROWD
        return 0

    cdef int turn(self, Waiter* waiter) noexcept nogil:
        """One turn of waiting; now and then it looks at signals and local peers and calls the companion."""
        cdef int turn = take_turn(self.worker, waiter, self.watch.fds, self.watch.count)
        if turn != PATROL:
            return turn
        with gil:
            try:
                PyErr_CheckSignals()
                self.patrol()
                if self.companion is not None:
                    self.companion()
            except BaseException as error:  # a signal handler's or the companion's, on its way to the caller
                self.interruption = error
                return INTERRUPTED
        return GO_ON

    cdef int patrol(self) except -1:
        """Mark the peers whose processes have ended, once all they sent has been taken in, or that are said to be dead.
        """
        cdef Peer peer
        cdef int turns
        gone = self.watch.ended()
        if not gone:
            return 0
        for turns in range(GRACE_TURNS):
            if ucp_worker_progress(self.worker) == 0:
                break
        dead = self.herald.dead() if self.herald is not None and self.herald.fileno() in gone else ()
        for item in self.peers.values():
            peer = <Peer>item
            if peer.pidfd in gone:
                self.watch.drop(peer.pidfd)
                _on_peer_failure(&peer.link, peer.link.ep, UCS_ERR_CONNECTION_RESET)
            elif peer.number in dead and peer.link.failed == UCS_OK:
                _on_peer_failure(&peer.link, peer.link.ep, UCS_ERR_ENDPOINT_TIMEOUT)
        return 0

    cdef int heed(self, object herald) except -1:
        """Let `herald` say which peers are dead; None: nobody does any more."""
        if self.herald is not None:
            self.watch.drop(self.herald.fileno())
        self.herald = herald
        return 0 if herald is None else self.watch.add(herald.fileno())

    cdef int raise_interruption(self) except -1:
        error = self.interruption
        self.interruption = None
        raise error

    cdef int drain(self, void* handle, Peer peer, double deadline) except -1:
        """Wait until UCX is done with `handle` (NULL: it is) or `peer` has failed; the handle is not freed."""
        cdef Waiter waiter = wait_for(deadline - now(), self.companion is not None)
        cdef int turn = GO_ON
        if handle == NULL:
            return 0
        with nogil:
            while ucp_request_check_status(handle) == UCS_INPROGRESS and peer.link.failed == UCS_OK:
                turn = self.turn(&waiter)
                if turn != GO_ON:
                    break
        if turn == INTERRUPTED:
            self.raise_interruption()
        if turn == LATE:
            raise CollectiveTimeoutError(
                f"what was sent to peer {peer.number} did not leave in time",
                peer=peer.number,
                remedy="See whether that peer is alive and receiving.",
            )
        return 0

    cdef int flush(self, double deadline) except -1:
        """Wait until what was sent to the peers that have not failed has left this process for good."""
        cdef ucp_request_param_t param
        cdef Peer peer
        cdef void* handle
        param.op_attr_mask = 0
        for item in list(self.peers.values()):
            peer = <Peer>item
            if not peer.sent or peer.link.failed != UCS_OK:
                continue
            handle = ucp_ep_flush_nbx(peer.link.ep, &param)
            if handle != NULL and not UCS_PTR_IS_ERR(handle):
                try:
                    self.drain(handle, peer, deadline)
                finally:
                    ucp_request_free(handle)
            peer.sent = False
        self.clear_shelf(deadline)
        return 0

    cdef int clear_shelf(self, double deadline) except -1:
        """Wait until what is on the shelf has been taken."""
        cdef Waiter waiter = wait_for(deadline - now(), self.companion is not None)
        cdef int turn = GO_ON
        with nogil:
            while turn == GO_ON and not self.shelf.is_idle():
                turn = self.turn(&waiter)
        if turn == INTERRUPTED:
            self.raise_interruption()
        if turn == LATE:
            raise CollectiveTimeoutError(
                "what was sent to processes of this machine was not taken in time",
                remedy="See whether they are alive and receiving.",
            )
        return 0

    cdef int disconnect(self, double timeout) except -1:
        """Close all endpoints, by force where UCX allows it, and wait at most `timeout` seconds for that.

        Those from one shared worker to another stay until it is destroyed, and serve the next transport on it: UCX
        pairs the endpoints of two workers in the order they are made, so the other end may be one of the owner's.
        """
        cdef Peer peer
        cdef ucp_request_param_t param
        cdef void* handle
        cdef double deadline = now() + timeout
        for item in self.peers.values():
            peer = <Peer>item
            if peer.borrowed:
                continue
            if not self.owned and peer.address[:MAGIC] == SHARED and peer.address != self.address:
                peer.retire()
                _kept[self.address, peer.address] = peer
                continue
            param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS
            param.flags = UCP_EP_CLOSE_FLAG_FORCE
            handle = ucp_ep_close_nbx(peer.link.ep, &param)
            if UCS_PTR_IS_ERR(handle):  # by force is for endpoints with failure handling
                param.flags = 0
                handle = ucp_ep_close_nbx(peer.link.ep, &param)
            if handle == NULL or UCS_PTR_IS_ERR(handle):
                continue
            with nogil:
                while ucp_request_check_status(handle) == UCS_INPROGRESS and now() < deadline:
                    ucp_worker_progress(self.worker)
            if not self.owned and ucp_request_check_status(handle) == UCS_INPROGRESS:
                peer.retire()
                _outlived.append(peer)
            ucp_request_free(handle)
        for item in self.peers.values():  # scripts that outlive this hold the peer, not its process
            self.watch.drop((<Peer>item).pidfd)
            (<Peer>item).forget_process()
        self.peers.clear()
        return 0

    cdef int close(self) except -1:
        """Destroy what `open` made, after `disconnect`; forget what was adopted."""
        self.shelf.close(self.worker)
        self.peers.clear()
        if self.owned:
            with nogil:
                ucp_worker_destroy(self.worker)
                ucp_cleanup(self.context)
        self.worker = NULL
        self.context = NULL
        self.watch.count = 0
        forget_views(&self.views)
        return 0
