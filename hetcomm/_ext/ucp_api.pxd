"""UCP's types and the functions of `ucp_table.h`, under their own names, for Cython.

Functions are called through the table that `hetcomm_ucp_resolve` fills; nothing is linked.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport FILE


cdef extern from "ucp_table.h" nogil:
    const char* hetcomm_ucp_resolve(void* library, const char** since)

    ctypedef int ucs_status_t
    ctypedef void* ucs_status_ptr_t
    ctypedef int ucs_memory_type_t
    ctypedef uint64_t ucp_tag_t

    enum:
        UCS_OK
        UCS_INPROGRESS
        UCS_ERR_BUSY
        UCS_ERR_CANCELED
        UCS_ERR_MESSAGE_TRUNCATED
        UCS_ERR_NO_ELEM
        UCS_ERR_CONNECTION_RESET
        UCS_ERR_ENDPOINT_TIMEOUT
        UCS_MEMORY_TYPE_HOST
        UCS_MEMORY_TYPE_CUDA
        UCS_MEMORY_TYPE_ROCM
        UCS_THREAD_MODE_SERIALIZED
        UCS_THREAD_MODE_MULTI
        UCP_FEATURE_TAG
        UCP_FEATURE_RMA
        UCP_FEATURE_WAKEUP
        UCP_PARAM_FIELD_FEATURES
        UCP_ATTR_FIELD_MEMORY_TYPES
        UCP_WORKER_PARAM_FIELD_THREAD_MODE
        UCP_WORKER_PARAM_FIELD_FLAGS
        UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK
        UCP_WORKER_ATTR_FIELD_THREAD_MODE
        UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
        UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
        UCP_EP_PARAM_FIELD_ERR_HANDLER
        UCP_ERR_HANDLING_MODE_NONE
        UCP_ERR_HANDLING_MODE_PEER
        UCP_EP_ATTR_FIELD_TRANSPORTS
        UCP_EP_CLOSE_FLAG_FORCE
        UCP_OP_ATTR_FIELD_FLAGS
        UCP_OP_ATTR_FIELD_MEMORY_TYPE
        UCP_OP_ATTR_FIELD_RECV_INFO
        UCP_OP_ATTR_FLAG_MULTI_SEND

    struct ucp_context:
        pass
    struct ucp_worker:
        pass
    struct ucp_ep:
        pass
    struct ucp_config:
        pass
    struct ucp_address:
        pass
    ctypedef ucp_context* ucp_context_h
    ctypedef ucp_worker* ucp_worker_h
    ctypedef ucp_ep* ucp_ep_h
    ctypedef ucp_config ucp_config_t
    ctypedef ucp_address ucp_address_t
    ctypedef enum ucs_config_print_flags_t:
        UCS_CONFIG_PRINT_CONFIG

    ctypedef struct ucp_params_t:
        uint64_t field_mask
        uint64_t features

    ctypedef struct ucp_context_attr_t:
        uint64_t field_mask
        uint64_t memory_types

    ctypedef struct ucp_worker_params_t:
        uint64_t field_mask
        int thread_mode
        uint64_t flags

    ctypedef struct ucp_worker_attr_t:
        uint64_t field_mask
        int thread_mode

    ctypedef struct ucp_err_handler_t:
        void (*cb)(void* arg, ucp_ep_h ep, ucs_status_t status) noexcept nogil
        void* arg

    ctypedef struct ucp_ep_params_t:
        uint64_t field_mask
        const ucp_address_t* address
        int err_mode
        ucp_err_handler_t err_handler

    ctypedef struct ucp_transport_entry_t:
        const char* transport_name
        const char* device_name

    ctypedef struct ucp_transports_t:
        ucp_transport_entry_t* entries
        unsigned int num_entries
        size_t entry_size

    ctypedef struct ucp_ep_attr_t:
        uint64_t field_mask
        ucp_transports_t transports

    ctypedef struct ucp_tag_recv_info_t:
        ucp_tag_t sender_tag
        size_t length

    ctypedef struct ucp_request_param_t:
        unsigned int op_attr_mask
        unsigned int flags
        ucs_memory_type_t memory_type
        ucp_tag_recv_info_t* tag_info "recv_info.tag_info"

    bint UCS_PTR_IS_ERR(ucs_status_ptr_t request)
    ucs_status_t UCS_PTR_STATUS(ucs_status_ptr_t request)

    void ucp_get_version "hetcomm_ucp.ucp_get_version" (unsigned* major, unsigned* minor, unsigned* release)
    ucs_status_t ucp_init_version "hetcomm_ucp.ucp_init_version" (
        unsigned major, unsigned minor, const ucp_params_t* params, const ucp_config_t* config, ucp_context_h* context)
    void ucp_cleanup "hetcomm_ucp.ucp_cleanup" (ucp_context_h context)
    ucs_status_t ucp_config_read "hetcomm_ucp.ucp_config_read" (
        const char* prefix, const char* path, ucp_config_t** config)
    ucs_status_t ucp_config_modify "hetcomm_ucp.ucp_config_modify" (
        ucp_config_t* config, const char* name, const char* value)
    void ucp_config_print "hetcomm_ucp.ucp_config_print" (
        const ucp_config_t* config, FILE* stream, const char* title, ucs_config_print_flags_t flags)
    void ucp_config_release "hetcomm_ucp.ucp_config_release" (ucp_config_t* config)
    ucs_status_t ucp_context_query "hetcomm_ucp.ucp_context_query" (ucp_context_h context, ucp_context_attr_t* attr)
    ucs_status_t ucp_worker_create "hetcomm_ucp.ucp_worker_create" (
        ucp_context_h context, const ucp_worker_params_t* params, ucp_worker_h* worker)
    void ucp_worker_destroy "hetcomm_ucp.ucp_worker_destroy" (ucp_worker_h worker)
    ucs_status_t ucp_worker_query "hetcomm_ucp.ucp_worker_query" (ucp_worker_h worker, ucp_worker_attr_t* attr)
    void ucp_worker_print_info "hetcomm_ucp.ucp_worker_print_info" (ucp_worker_h worker, FILE* stream)
    ucs_status_t ucp_worker_get_address "hetcomm_ucp.ucp_worker_get_address" (
        ucp_worker_h worker, ucp_address_t** address, size_t* length)
    void ucp_worker_release_address "hetcomm_ucp.ucp_worker_release_address" (
        ucp_worker_h worker, ucp_address_t* address)
    unsigned ucp_worker_progress "hetcomm_ucp.ucp_worker_progress" (ucp_worker_h worker)
    ucs_status_t ucp_worker_get_efd "hetcomm_ucp.ucp_worker_get_efd" (ucp_worker_h worker, int* fd)
    ucs_status_t ucp_worker_arm "hetcomm_ucp.ucp_worker_arm" (ucp_worker_h worker)
    ucs_status_ptr_t ucp_ep_flush_nbx "hetcomm_ucp.ucp_ep_flush_nbx" (
        ucp_ep_h endpoint, const ucp_request_param_t* param)
    ucs_status_t ucp_ep_create "hetcomm_ucp.ucp_ep_create" (
        ucp_worker_h worker, const ucp_ep_params_t* params, ucp_ep_h* endpoint)
    ucs_status_ptr_t ucp_ep_close_nbx "hetcomm_ucp.ucp_ep_close_nbx" (
        ucp_ep_h endpoint, const ucp_request_param_t* param)
    void ucp_ep_print_info "hetcomm_ucp.ucp_ep_print_info" (ucp_ep_h endpoint, FILE* stream)
    bint has_ep_query "(hetcomm_ucp.ucp_ep_query != NULL)"
    ucs_status_t ucp_ep_query "hetcomm_ucp.ucp_ep_query" (ucp_ep_h endpoint, ucp_ep_attr_t* attr)
    ucs_status_ptr_t ucp_tag_send_nbx "hetcomm_ucp.ucp_tag_send_nbx" (
        ucp_ep_h endpoint, const void* buffer, size_t count, ucp_tag_t tag, const ucp_request_param_t* param)
    ucs_status_ptr_t ucp_tag_recv_nbx "hetcomm_ucp.ucp_tag_recv_nbx" (
        ucp_worker_h worker, void* buffer, size_t count, ucp_tag_t tag, ucp_tag_t tag_mask,
        const ucp_request_param_t* param)
    void* ucp_tag_probe_nb "hetcomm_ucp.ucp_tag_probe_nb" (
        ucp_worker_h worker, ucp_tag_t tag, ucp_tag_t tag_mask, int remove, ucp_tag_recv_info_t* info)
    ucs_status_t ucp_tag_recv_request_test "hetcomm_ucp.ucp_tag_recv_request_test" (
        void* request, ucp_tag_recv_info_t* info)
    ucs_status_t ucp_request_check_status "hetcomm_ucp.ucp_request_check_status" (void* request)
    void ucp_request_cancel "hetcomm_ucp.ucp_request_cancel" (ucp_worker_h worker, void* request)
    void ucp_request_free "hetcomm_ucp.ucp_request_free" (void* request)
    const char* ucs_status_string "hetcomm_ucp.ucs_status_string" (ucs_status_t status)
