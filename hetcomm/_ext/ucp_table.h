/* The functions of libucp that hetcomm calls, looked up in a library chosen at run time.
 *
 * Nothing here is linked: the types come from UCX's headers, the addresses from dlsym. Each entry
 * names the first UCX release that has the function, so that an older one can be told what it lacks.
 * To call one more function, add it to a list below and declare it in ucp_api.pxd. */
#ifndef HETCOMM_UCP_TABLE_H
#define HETCOMM_UCP_TABLE_H

#include <dlfcn.h>
#include <stddef.h>
#include <ucp/api/ucp.h>

#define HETCOMM_UCP_REQUIRED(X) \
    X(ucp_get_version, "1.0") \
    X(ucp_init_version, "1.0") \
    X(ucp_cleanup, "1.0") \
    X(ucp_config_read, "1.0") \
    X(ucp_config_modify, "1.0") \
    X(ucp_config_print, "1.0") \
    X(ucp_config_release, "1.0") \
    X(ucp_context_query, "1.0") \
    X(ucp_worker_create, "1.0") \
    X(ucp_worker_destroy, "1.0") \
    X(ucp_worker_get_address, "1.0") \
    X(ucp_worker_release_address, "1.0") \
    X(ucp_worker_progress, "1.0") \
    X(ucp_worker_get_efd, "1.0") \
    X(ucp_worker_arm, "1.0") \
    X(ucp_ep_flush_nbx, "1.10") \
    X(ucp_ep_create, "1.0") \
    X(ucp_ep_close_nbx, "1.10") \
    X(ucp_ep_print_info, "1.0") \
    X(ucp_tag_send_nbx, "1.10") \
    X(ucp_tag_recv_nbx, "1.10") \
    X(ucp_tag_recv_request_test, "1.4") \
    X(ucp_tag_probe_nb, "1.0") \
    X(ucp_request_check_status, "1.2") \
    X(ucp_request_cancel, "1.0") \
    X(ucp_request_free, "1.0") \
    X(ucs_status_string, "1.0") \
    X(ucp_worker_query, "1.0") \
    X(ucp_worker_print_info, "1.0")

#define HETCOMM_UCP_OPTIONAL(X) \
    X(ucp_ep_query, "1.12")

/* The type of a null pointer to the function: never evaluated, so no symbol is referred to. */
#define HETCOMM_UCP_FIELD(name, since) __typeof__(&name) name;
static struct {
    HETCOMM_UCP_REQUIRED(HETCOMM_UCP_FIELD)
    HETCOMM_UCP_OPTIONAL(HETCOMM_UCP_FIELD)
} hetcomm_ucp;
#undef HETCOMM_UCP_FIELD

/* Fill the table from an open library. Returns NULL, or the name of the first required function that
 * it lacks, with the release that brought it in *since. */
static const char *hetcomm_ucp_resolve(void *library, const char **since)
{
#define HETCOMM_UCP_NEED(name, release) \
    if (!(*(void **)&hetcomm_ucp.name = dlsym(library, #name))) { *since = release; return #name; }
#define HETCOMM_UCP_TAKE(name, release) \
    *(void **)&hetcomm_ucp.name = dlsym(library, #name);
    HETCOMM_UCP_REQUIRED(HETCOMM_UCP_NEED)
    HETCOMM_UCP_OPTIONAL(HETCOMM_UCP_TAKE)
#undef HETCOMM_UCP_NEED
#undef HETCOMM_UCP_TAKE
    return NULL;
}

#endif
