# Whom messages go to: addresses, endpoints, and the processes of peers on this machine.

cdef extern from "<unistd.h>" nogil:
    int close_fd "close" (int fd)

cdef extern from "<stdio.h>" nogil:
    FILE* open_memstream(char** text, size_t* length)

OWN = b"HCU1"                  # magic of a worker that hetcomm has made,
SHARED = b"HCS1"               # and of one that it shares
cdef tuple SHARES_MEMORY = ("posix", "sysv", "xpmem", "unknown")  # lanes
cdef Py_ssize_t MAGIC = 4
cdef Py_ssize_t PROCESS = 28   # where the process id begins, after boot id and process namespace,
cdef Py_ssize_t OFFERS = 32    # and after it what says whether the process takes offers
cdef Py_ssize_t HEADER = 40

# What outlives its transport, since a shared worker lives on: the peers whose endpoints stay, by the addresses of the
# worker and of theirs, and what UCX may still write to.
cdef dict _kept = {}
cdef list _outlived = []
cdef unsigned int _unheard = 0

cdef extern from "ucp_shared.h" nogil:
    ctypedef struct Distance "hetcomm_distance":
        pass

cdef struct Link:
    ucp_ep_h ep
    ucs_status_t failed
    unsigned int* failures
    int pid              # of the peer, if it is on this machine; otherwise 0
    bint sees            # whether it may see memory that this process shares: it has not said no
    bint has_seen        # and it has said yes
    Distance distance


cdef void _on_peer_failure(void* argument, ucp_ep_h ep, ucs_status_t status) noexcept nogil:
    cdef Link* link = <Link*>argument
    link.failed = status
    link.failures[0] += 1


cdef str _printed(ucp_worker_h worker, ucp_ep_h ep):
    """UCX's own text about a worker, or about an endpoint."""
    cdef char* text = NULL
    cdef size_t length = 0
    cdef FILE* stream = open_memstream(&text, &length)
    if stream == NULL:
        raise MemoryError()
    if worker != NULL:
        ucp_worker_print_info(worker, stream)
    else:
        ucp_ep_print_info(ep, stream)
    fclose(stream)
    try:
        return text[:length].decode(errors="replace")
    finally:
        free(text)


def configured():
    """What UCX reads from its environment and its files, as printed: a dict of text by name without 'UCX_'.

    Raises:
        TransportError: It cannot be read.
    """
    cdef ucp_config_t* config
    cdef char* text = NULL
    cdef size_t length = 0
    cdef FILE* stream
    _check(ucp_config_read(NULL, NULL, &config), "ucp_config_read")
    stream = open_memstream(&text, &length)
    if stream == NULL:
        ucp_config_release(config)
        raise MemoryError()
    ucp_config_print(config, stream, "", UCS_CONFIG_PRINT_CONFIG)
    ucp_config_release(config)
    fclose(stream)
    try:
        lines = text[:length].decode(errors="replace").splitlines()
    finally:
        free(text)
    pairs = [line.partition("=") for line in lines if line.startswith("UCX_")]
    return {name[4:]: value for name, _, value in pairs}


cdef bytes _process_mark():
    """What follows the magic in an address: it tells a peer whether this process is on its machine, and which it is."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            machine = bytes.fromhex(file.read().strip().replace("-", ""))
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        machine, namespace = os.urandom(16), 0  # like no other's: every peer counts as remote
    return machine + namespace.to_bytes(8, "little") + os.getpid().to_bytes(4, "little")


def home_of(bytes address):
    """What the addresses of processes have in common that see one another, as text."""
    return address[MAGIC:PROCESS].hex()


cdef bint _is_dying(int pid) except -1:
    """Whether a process has been killed: it ends when its memory has been given back, which may take a while."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict([line.split(":", 1) for line in file if ":" in line])
    except OSError:
        return False
    killed = 1 << (signal.SIGKILL - 1)
    return bool((int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)) & killed)


@cython.final
cdef class Watch:
    """The descriptors a sleeper watches: first the worker's own (-1: none), then the pidfds of local peers."""

    cdef pollfd* fds
    cdef unsigned int count

    cdef int add(self, int fd) except -1:
        cdef pollfd* grown = <pollfd*>realloc(self.fds, (self.count + 1) * sizeof(pollfd))
        if grown == NULL:
            raise MemoryError()
        self.fds = grown
        self.fds[self.count].fd = fd
        self.fds[self.count].events = POLLIN
        self.fds[self.count].revents = 0
        self.count += 1
        return 0

    cdef int drop(self, int fd) noexcept:
        cdef unsigned int index
        for index in range(1, self.count):
            if self.fds[index].fd == fd:
                self.count -= 1
                self.fds[index] = self.fds[self.count]
                break
        return 0

    cdef set ended(self):
        """The pidfds of the processes that have ended."""
        if self.count < 2 or poll(self.fds + 1, self.count - 1, 0) == 0:
            return set()
        return {self.fds[index].fd for index in range(1, self.count) if self.fds[index].revents & POLLIN}

    def __dealloc__(self):
        free(self.fds)


@cython.final
cdef class Peer:
    """One process that messages go to: its number, its endpoint, and whether it has failed."""

    cdef Link link
    cdef readonly int number
    cdef bytes address
    cdef int pidfd
    cdef bint sent
    cdef bint borrowed         # its endpoint is somebody else's

    def __cinit__(self):
        self.pidfd = -1

    cdef int open(self, ucp_worker_h worker, bytes own, Watch watch, ucp_ep_h ep) except -1:
        """Make the endpoint to `address`, with the failure handling that fits where the process of it runs.

        `own` is the address of this process, `watch` gets the pidfd of a peer on this machine. `ep` is an endpoint to
        use instead, or NULL.
        """
        cdef ucp_ep_params_t params
        cdef const char* raw = self.address
        cdef bint is_local = self.address[MAGIC:PROCESS] == own[MAGIC:PROCESS]
        self.link.pid = self.pid() if is_local else 0
        if is_local and self.address[MAGIC:OFFERS] != own[MAGIC:OFFERS]:
            self.watch_process(self.pid(), watch)
        if ep != NULL:
            self.link.ep = ep
            self.link.sees = is_local and self.shares_memory(own)
            return 0
        memset(&params, 0, sizeof(params))
        params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLER
        params.address = <const ucp_address_t*>(raw + HEADER)
        params.err_handler.cb = _on_peer_failure
        params.err_handler.arg = &self.link
        if not is_local:
            params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
            params.err_mode = UCP_ERR_HANDLING_MODE_PEER
        cdef ucs_status_t status = ucp_ep_create(worker, &params, &self.link.ep)
        if status != UCS_OK:
            ended = self.pidfd >= 0 and self.pidfd in watch.ended()
            watch.drop(self.pidfd)
            if ended:
                raise self.has_ended()
            raise TransportError(
                f"UCX cannot reach peer {self.number}: {_text(status)}",
                peer=self.number,
                remedy="Look at UCX_TLS and UCX_NET_DEVICES on both sides; 'hetcomm doctor' shows the transports.",
            )
        self.link.sees = is_local and self.shares_memory(own)
        return 0

    cdef int pid(self) except -1:
        """The number of its process on its machine."""
        return int.from_bytes(self.address[PROCESS:OFFERS], "little")

    cdef bint shares_memory(self, bytes own) except -1:
        """Whether it is another worker that UCX reaches through memory that both share, as far as is known, and that
        takes offers."""
        if self.address == own or not self.address[OFFERS]:
            return False
        return any([lane.startswith(SHARES_MEMORY) for lane in self.lanes()])

    cdef int watch_process(self, int pid, Watch watch) except -1:
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise self.has_ended() from None
        except OSError:
            return 0  # no pidfd in this kernel or sandbox: its failure shows as a timeout
        return watch.add(self.pidfd)

    cdef int retire(self) except -1:
        """Leave the transport; an endpoint that is not closed may still report its failure here."""
        self.link.failures = &_unheard
        self.forget_process()
        return 0

    cdef void forget_process(self) noexcept:
        """Watch it no longer."""
        if self.pidfd >= 0:
            close_fd(self.pidfd)
            self.pidfd = -1

    cdef object has_ended(self):
        return PeerFailureError(
            f"peer {self.number} (process {self.pid()}) has ended", peer=self.number,
            remedy="Look at that peer's output for why it ended.",
        )

    cdef list lanes(self):
        """The transports UCX has chosen, as 'transport/device', or why they are not known."""
        cdef ucp_ep_attr_t attributes
        cdef ucp_transport_entry_t entries[64]
        cdef unsigned int index
        if self.link.failed != UCS_OK:
            return [f"failed: {_text(self.link.failed)}"]
        memset(&attributes, 0, sizeof(attributes))
        attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS
        attributes.transports.entries = entries
        attributes.transports.num_entries = 64
        attributes.transports.entry_size = sizeof(ucp_transport_entry_t)
        if not has_ep_query or ucp_ep_query(self.link.ep, &attributes) != UCS_OK:
            return ["unknown: this UCX has no ucp_ep_query of transports (since 1.14)"]
        names = []
        for index in range(attributes.transports.num_entries):
            name = f"{entries[index].transport_name.decode()}/{entries[index].device_name.decode()}"
            if name not in names:
                names.append(name)
        return names

    cdef str describe(self):
        """UCX's own text about the endpoint."""
        return _printed(NULL, self.link.ep)

    def __dealloc__(self):
        if self.pidfd >= 0:
            close_fd(self.pidfd)
