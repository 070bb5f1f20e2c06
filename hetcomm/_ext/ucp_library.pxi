# Which libucp this process uses.


cdef str _text(ucs_status_t status):
    return ucs_status_string(status).decode()


cdef tuple _version():
    cdef unsigned major, minor, release
    ucp_get_version(&major, &minor, &release)
    return major, minor, release


cdef object _resolved = None


def resolve(str path):
    """Use the libucp at `path` for all workers of this process; returns its version as three numbers.

    Raises:
        TransportError: It cannot be opened, lacks a function (the message says since which UCX there is one), or
            another library was resolved before.
    """
    global _resolved
    if _resolved is not None and _resolved != path:
        raise TransportError(
            f"this process already uses {_resolved}; {path} cannot be used beside it",
            remedy="Two UCX libraries in one process crash; start a new process to use another.",
        )
    cdef bytes name = path.encode()
    cdef void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise TransportError(f"{path} cannot be loaded: {dlerror().decode()}")
    cdef const char* since = NULL
    cdef const char* missing = hetcomm_ucp_resolve(library, &since)
    if missing != NULL:
        found = ".".join(map(str, _version())) if missing != b"ucp_get_version" else "of unknown version"
        raise TransportError(
            f"UCX {found} at {path} lacks the function {missing.decode()}",
            remedy=f"hetcomm needs UCX {since.decode()} or later: "
                   "install libucx-cu12, or point HETCOMM_UCX_HOME to one.",
        )
    _resolved = path
    return _version()


cdef int _check(ucs_status_t status, str function) except -1:
    if status != UCS_OK:
        raise TransportError(
            f"{function} of {_resolved} failed: {_text(status)}",
            remedy="Run with UCX_LOG_LEVEL=info to see what UCX tried.",
        )
    return 0
