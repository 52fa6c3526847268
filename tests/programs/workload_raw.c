/*
 * Mode on libpmem alone: a ring of unaligned records, each persisted before the count that covers it.
 */
#include "workload.h"

#include <libpmem.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_SIZE (4UL << 20)
#define HEAD 4096
#define KEEP 64

struct head {
	uint64_t count;
	uint64_t pad[7];
	uint64_t offset[KEEP]; /* of record n in slot n % KEEP */
};

struct rec {
	uint64_t n;
	uint64_t len;
	unsigned char body[];
};

static size_t rec_len(uint64_t n)
{
	return mix(n) % 5000;
}

static void run_raw(struct job *job)
{
	size_t len;
	int is_pmem;
	char *base = pmem_map_file(job->pool, FILE_SIZE, PMEM_FILE_CREATE, 0600, &len, &is_pmem);
	if (base == NULL)
		die(job->pool);
	struct head *head = (struct head *)base;
	size_t at = HEAD;
	unsigned char body[5000];
	printf("ready\n");
	fflush(stdout);
	for (uint64_t n = 1; n <= job->count; n++) {
		size_t body_len = rec_len(n);
		if (at + sizeof(struct rec) + body_len > FILE_SIZE)
			at = HEAD + mix(n) % 64 * 8;
		struct rec *rec = (struct rec *)(base + at);
		memset(body, (int)(n & 0xff), body_len);
		struct rec r = {n, body_len};
		pmem_memcpy_nodrain(rec, &r, sizeof(r));
		if (n % 3 == 0) {
			memcpy(rec->body, body, body_len);
			pmem_flush(rec->body, body_len);
		} else if (n % 3 == 1) {
			pmem_memcpy(rec->body, body, body_len, PMEM_F_MEM_NODRAIN | PMEM_F_MEM_NONTEMPORAL);
		} else {
			pmem_memset_nodrain(rec->body, (int)(n & 0xff), body_len);
		}
		head->offset[n % KEEP] = at;
		pmem_flush(&head->offset[n % KEEP], 8);
		pmem_drain();
		head->count = n;
		pmem_persist(&head->count, 8);
		at += (sizeof(struct rec) + body_len + 7) & ~7UL;
		acknowledge(job, 0, n);
	}
	pmem_unmap(base, len);
}

static const char *check_raw(struct job *job, uint64_t *found)
{
	size_t len;
	int is_pmem;
	struct stat st;
	if (stat(job->pool, &st) != 0 || st.st_size < (off_t)FILE_SIZE)
		return job->acks->thread[0].done == 0 ? NULL : "file missing or short";
	char *base = pmem_map_file(job->pool, 0, 0, 0, &len, &is_pmem);
	if (base == NULL)
		return "file does not map";
	const char *wrong = NULL;
	struct head *head = (struct head *)base;
	uint64_t n = head->count;
	/* the newest records; older ones may have been overwritten by the wrap */
	for (unsigned i = 0; wrong == NULL && i < KEEP / 2 && n > 0; i++, n--) {
		const struct rec *rec = (const struct rec *)(base + head->offset[n % KEEP]);
		if (head->offset[n % KEEP] > FILE_SIZE - sizeof(*rec) || rec->n != n || rec->len != rec_len(n))
			wrong = "record with a wrong head";
		for (size_t k = 0; wrong == NULL && k < rec->len; k++)
			if (rec->body[k] != (n & 0xff))
				wrong = "record with a wrong body";
	}
	*found = head->count;
	pmem_unmap(base, len);
	return wrong;
}

const struct mode mode_raw = {"raw", 1, run_raw, check_raw};
