# Messages that stay where they are: long ones of scripts, out of memory that this process shares with its machine.
#
# In their place an offer is sent, which says where the message lies. The receiver copies it from there, or reduces it
# with what it has, and answers. If it cannot see that memory it answers that, and the message itself follows. Whoever
# receives a message of a collective must expect an offer, which is told from a message of the wrong length by its mark.
#
# What does not lie in shared memory is copied to the shelf first, long messages in parts: the offer of each, or the
# rest of the message itself, follows under the number of the first. A sender that finds the shelf full waits for a
# place, but not for ever: what lies there may be for calls that the receiver comes to only after this message.

cdef extern from "ucp_shared.h" nogil:
    ctypedef struct Offer "hetcomm_offer":
        uint64_t nbytes
        uint64_t rest
        uint64_t number
    ctypedef struct Views "hetcomm_views":
        pass
    int guard_memory "hetcomm_guard" (const char* start, size_t nbytes)
    void unguard_memory "hetcomm_unguard" (const char* start, size_t nbytes)
    bint may_touch "hetcomm_may_touch" (const void* start, size_t nbytes)
    size_t times_refused "hetcomm_guarded.refused"
    int share_memory "hetcomm_share" (char* start, size_t nbytes, int fd)
    bint offers "hetcomm_offers" (const char* start, size_t nbytes, Offer* offer)
    bint is_offer "hetcomm_is_offer" (const void* content, size_t length)
    const char* see "hetcomm_see" (Views* views, const Offer* offer, int pid)
    void copy_over "hetcomm_copy" (char* dst, const char* src, size_t nbytes)
    void forget_views "hetcomm_forget" (Views* views)

    bint is_far "hetcomm_is_far" (Distance* distance)
    void put_over "hetcomm_put" (char* dst, const char* src, size_t nbytes, Distance* distance)

cdef enum:
    LEAST_OFFERED = 1 << 12   # bytes of a message
    MOST_SHELVED = 1 << 18    # bytes of one, or of a part of one, that is first copied to where it can be seen
    # Bytes of the longest message that is. The second copy is free where the sender's core would be idle meanwhile;
    # where the sender has long messages to receive itself, or ranks share the cores, the kernel, which copies once, is
    # asked instead.
    LONGEST_SHELVED = 1 << 19
    LONGEST_SHELVED_IN_CROWD = 1 << 17
    SLOTS = 32                # for so many of them

# Of tags, as `hetcomm.execution.tags` divides them:
cdef ucp_tag_t COLLECTIVE = <ucp_tag_t>3 << 46             # both bits are set in those of the messages of programs,
cdef ucp_tag_t CHANNEL = <ucp_tag_t>0xFF << 21             # whose channel this is,
cdef ucp_tag_t CHECK = 0x1FFF                              # and these what the ranks must agree on
cdef ucp_tag_t CLASS = <ucp_tag_t>0xB << 44                # of messages of the transport itself
cdef ucp_tag_t ANSWERS = <ucp_tag_t>1 << 48 | CLASS        # to offers, with their numbers
cdef ucp_tag_t FOLLOWS = <ucp_tag_t>2 << 48 | CLASS        # parts after the first, or the rest, with its number
cdef char TAKEN = 1
cdef char DECLINED = 2


def share(size_t address, size_t nbytes, int fd):
    """Let others on this machine read memory that is the file `fd`, mapped from its beginning; in place of what was.

    It must stay mapped, and the file open under that number, as long as the process lives.
    """
    if share_memory(<char*>address, nbytes, fd) != 0:
        raise OSError(f"the file of the memory at {address:#x} cannot be examined")


def guard(size_t address, size_t nbytes):
    """Let nobody but UCX touch memory in messages of programs, as if a processor could not, until `unguard`."""
    if guard_memory(<const char*>address, nbytes) != 0:
        raise MemoryError("too many ranges of memory are guarded")


def unguard(size_t address, size_t nbytes):
    """Undo one `guard` of that range."""
    unguard_memory(<const char*>address, nbytes)


def refused():
    """How often the binding has refused to touch guarded memory."""
    return times_refused


cdef int answer(ucp_ep_h ep, const Offer* offer, const char* what) noexcept nogil:
    """Tell whoever made the offer; nobody waits for this message to leave."""
    cdef ucp_request_param_t param
    cdef void* handle
    param.op_attr_mask = 0
    handle = ucp_tag_send_nbx(ep, what, 1, ANSWERS | offer.number, &param)
    if handle != NULL and not UCS_PTR_IS_ERR(handle):
        ucp_request_free(handle)
    return 0


cdef struct Offered:
    Offer offer
    char answer


cdef struct Slot:
    Offered offered
    char* memory
    void* handle     # of the answer, or NULL: it is free
    bint held        # by a run that waits for the answer
    Link* link


@cython.final
cdef class Shelf:
    """Shared memory that messages are copied to, so that others can take them from there."""

    cdef Slot[SLOTS] slots
    cdef object keep

    cdef int open(self, char* memory, object keep) except -1:
        cdef int number
        self.keep = keep
        for number in range(SLOTS):
            self.slots[number].memory = memory + number * MOST_SHELVED
        return 0

    cdef Slot* free(self, ucp_worker_h worker) noexcept nogil:
        """A slot whose message has been taken, or whose receiver is gone; NULL if there is none."""
        cdef Slot* slot
        cdef int number
        for number in range(SLOTS):
            slot = &self.slots[number]
            if slot.held:
                continue
            if slot.handle != NULL and slot.link.failed != UCS_OK:
                ucp_request_cancel(worker, slot.handle)
            elif slot.handle != NULL and ucp_request_check_status(slot.handle) == UCS_INPROGRESS:
                continue
            if slot.handle != NULL:
                ucp_request_free(slot.handle)
                slot.handle = NULL
            return slot if slot.memory != NULL else NULL
        return NULL

    cdef bint is_full(self) noexcept nogil:
        """Whether there is a shelf, but no slot that `free` would give."""
        cdef Slot* slot
        cdef int number
        for number in range(SLOTS):
            slot = &self.slots[number]
            if not slot.held and (slot.handle == NULL or slot.link.failed != UCS_OK
                                  or ucp_request_check_status(slot.handle) != UCS_INPROGRESS):
                return False
        return self.slots[0].memory != NULL

    cdef bint is_idle(self) noexcept nogil:
        """Whether all that lies there has been taken by those who live."""
        cdef int number
        for number in range(SLOTS):
            if (self.slots[number].handle != NULL and self.slots[number].link.failed == UCS_OK
                    and ucp_request_check_status(self.slots[number].handle) == UCS_INPROGRESS):
                return False
        return True

    cdef int close(self, ucp_worker_h worker) noexcept:
        cdef Slot* slot
        cdef int number
        for number in range(SLOTS):
            slot = &self.slots[number]
            if slot.handle != NULL:
                ucp_request_cancel(worker, slot.handle)
                ucp_request_free(slot.handle)
                slot.handle = NULL
            slot.memory = NULL
        self.keep = None
        return 0


cdef size_t part_of(size_t nbytes) noexcept nogil:
    """Bytes of the first of the equal parts of so many; all parts begin on a cache line."""
    cdef size_t count = (nbytes + MOST_SHELVED - 1) // MOST_SHELVED
    return nbytes if count == 1 else (nbytes // count + 63) // 64 * 64
