/*
 * What `pmemha-perf latency` compares with: librpma from an adapter to itself.
 *
 *   rpma ADDRESS PORT write|flush SIZE COUNT
 *
 *   write   rpma_write, until it has completed
 *   flush   rpma_write, then rpma_flush (visibility: a read after the write), until that has completed
 *
 * Prints the nanoseconds of each of COUNT operations. A child process is the server; its memory is DRAM.
 */
#include <inttypes.h>
#include <librpma.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* An operation's place moves by a line each, within this many bytes. */
#define WINDOW 4096

static void check(int result, const char *what)
{
	if (result == 0)
		return;
	fprintf(stderr, "rpma: %s: %s\n", what, rpma_err_2str(result));
	exit(1);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct rpma_peer *open_peer(const char *address, enum rpma_util_ibv_context_type type)
{
	struct ibv_context *context;
	struct rpma_peer *peer;
	check(rpma_utils_get_ibv_context(address, type, &context), address);
	check(rpma_peer_new(context, &peer), "rpma_peer_new");
	return peer;
}

static struct rpma_mr_local *register_pages(struct rpma_peer *peer, size_t bytes, int usage)
{
	void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
	if (memory == NULL)
		die("aligned_alloc");
	memset(memory, 0x5a, bytes);
	struct rpma_mr_local *mr;
	check(rpma_mr_reg(peer, memory, bytes, usage, &mr), "rpma_mr_reg");
	return mr;
}

static void expect(struct rpma_conn *conn, enum rpma_conn_event wanted)
{
	enum rpma_conn_event event;
	check(rpma_conn_next_event(conn, &event), "rpma_conn_next_event");
	if (event == wanted)
		return;
	fprintf(stderr, "rpma: %s instead of %s\n", rpma_utils_conn_event_2str(event),
		rpma_utils_conn_event_2str(wanted));
	exit(1);
}

static void serve(char **argv, size_t bytes, int ready)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct rpma_peer *peer = open_peer(argv[1], RPMA_UTIL_IBV_CONTEXT_LOCAL);
	struct rpma_mr_local *mr = register_pages(peer, bytes,
		RPMA_MR_USAGE_WRITE_DST | RPMA_MR_USAGE_READ_SRC | RPMA_MR_USAGE_FLUSH_TYPE_VISIBILITY);
	size_t size;
	check(rpma_mr_get_descriptor_size(mr, &size), "rpma_mr_get_descriptor_size");
	unsigned char descriptor[256];
	if (size > sizeof(descriptor))
		die("descriptor");
	check(rpma_mr_get_descriptor(mr, descriptor), "rpma_mr_get_descriptor");
	struct rpma_conn_private_data data = {.ptr = descriptor, .len = (uint8_t)size};

	struct rpma_ep *endpoint;
	check(rpma_ep_listen(peer, argv[1], argv[2], &endpoint), "rpma_ep_listen");
	if (write(ready, "1", 1) != 1)
		die("write");
	struct rpma_conn_req *request;
	struct rpma_conn *conn;
	check(rpma_ep_next_conn_req(endpoint, NULL, &request), "rpma_ep_next_conn_req");
	check(rpma_conn_req_connect(&request, &data, &conn), "rpma_conn_req_connect");
	expect(conn, RPMA_CONN_ESTABLISHED);
	expect(conn, RPMA_CONN_CLOSED);
	rpma_conn_disconnect(conn);
	rpma_conn_delete(&conn);
	rpma_ep_shutdown(&endpoint);
	rpma_mr_dereg(&mr);
	rpma_peer_delete(&peer);
	exit(0);
}

static uint64_t nanoseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void complete(struct rpma_cq *cq)
{
	struct ibv_wc wc;
	int result;
	do
		result = rpma_cq_get_wc(cq, 1, &wc, NULL);
	while (result == RPMA_E_NO_COMPLETION);
	check(result, "rpma_cq_get_wc");
	if (wc.status != IBV_WC_SUCCESS) {
		fprintf(stderr, "rpma: %s\n", ibv_wc_status_str(wc.status));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	if (argc != 6) {
		fprintf(stderr, "usage: rpma ADDRESS PORT write|flush SIZE COUNT\n");
		return 2;
	}
	int flushed = strcmp(argv[3], "flush") == 0;
	size_t size = strtoull(argv[4], NULL, 10), bytes = size + WINDOW;
	uint64_t count = strtoull(argv[5], NULL, 10);
	int ready[2];
	if (pipe(ready) != 0)
		die("pipe");
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (child == 0)
		serve(argv, bytes, ready[1]);
	close(ready[1]);
	char byte;
	if (read(ready[0], &byte, 1) != 1)
		return 1;

	struct rpma_peer *peer = open_peer(argv[1], RPMA_UTIL_IBV_CONTEXT_REMOTE);
	struct rpma_mr_local *mr = register_pages(peer, bytes, RPMA_MR_USAGE_WRITE_SRC);
	struct rpma_conn_req *request;
	struct rpma_conn *conn;
	check(rpma_conn_req_new(peer, argv[1], argv[2], NULL, &request), "rpma_conn_req_new");
	check(rpma_conn_req_connect(&request, NULL, &conn), "rpma_conn_req_connect");
	expect(conn, RPMA_CONN_ESTABLISHED);
	struct rpma_conn_private_data data;
	check(rpma_conn_get_private_data(conn, &data), "rpma_conn_get_private_data");
	struct rpma_mr_remote *remote;
	check(rpma_mr_remote_from_descriptor(data.ptr, data.len, &remote), "rpma_mr_remote_from_descriptor");
	struct rpma_cq *cq;
	check(rpma_conn_get_cq(conn, &cq), "rpma_conn_get_cq");

	for (uint64_t n = 0; n < count; n++) {
		size_t at = n * 64 % WINDOW;
		int each = flushed ? RPMA_F_COMPLETION_ON_ERROR : RPMA_F_COMPLETION_ALWAYS;
		uint64_t start = nanoseconds();
		check(rpma_write(conn, remote, at, mr, at, size, each, NULL), "rpma_write");
		if (flushed)
			check(rpma_flush(conn, remote, at, size, RPMA_FLUSH_TYPE_VISIBILITY,
					 RPMA_F_COMPLETION_ALWAYS, NULL),
			      "rpma_flush");
		complete(cq);
		printf("%" PRIu64 "\n", nanoseconds() - start);
	}
	rpma_conn_disconnect(conn);
	expect(conn, RPMA_CONN_CLOSED);
	int status;
	if (waitpid(child, &status, 0) != child || status != 0)
		return 1;
	return 0;
}
