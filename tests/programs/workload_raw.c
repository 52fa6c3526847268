/*
 * Modes on libpmem and on libpmem2 alone: a ring of unaligned records, each persisted before the count that
 * covers it.
 */
#include "workload.h"

#include <fcntl.h>
#include <libpmem.h>
#include <libpmem2.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* what either library calls it; its flags have the same names and values in both */
struct library {
	void *(*copy)(void *to, const void *from, size_t len, unsigned flags);
	void *(*set)(void *to, int byte, size_t len, unsigned flags);
	void (*flush)(const void *at, size_t len);
	void (*drain)(void);
	void (*persist)(const void *at, size_t len);
};

static void work(struct job *job, char *base, const struct library *pm)
{
	struct head *head = (struct head *)base;
	size_t at = HEAD;
	if (head->count > 0) {
		const struct rec *last = (const struct rec *)(base + head->offset[head->count % KEEP]);
		at = (head->offset[head->count % KEEP] + sizeof(*last) + last->len + 7) & ~7UL;
	}
	unsigned char body[5000];
	printf("ready\n");
	fflush(stdout);
	for (uint64_t n = job->first[0]; n <= job->count; n++) {
		size_t body_len = rec_len(n);
		if (at + sizeof(struct rec) + body_len > FILE_SIZE)
			at = HEAD + mix(n) % 64 * 8;
		struct rec *rec = (struct rec *)(base + at);
		memset(body, (int)(n & 0xff), body_len);
		struct rec r = {n, body_len};
		pm->copy(rec, &r, sizeof(r), PMEM_F_MEM_NODRAIN);
		if (n % 3 == 0) {
			memcpy(rec->body, body, body_len);
			pm->flush(rec->body, body_len);
		} else if (n % 3 == 1) {
			pm->copy(rec->body, body, body_len, PMEM_F_MEM_NODRAIN | PMEM_F_MEM_NONTEMPORAL);
		} else {
			pm->set(rec->body, (int)(n & 0xff), body_len, PMEM_F_MEM_NODRAIN);
		}
		head->offset[n % KEEP] = at;
		pm->flush(&head->offset[n % KEEP], 8);
		pm->drain();
		head->count = n;
		pm->persist(&head->count, 8);
		at += (sizeof(struct rec) + body_len + 7) & ~7UL;
		acknowledge(job, 0, n);
	}
}

static void run_raw(struct job *job)
{
	static const struct library libpmem = {pmem_memcpy, pmem_memset, pmem_flush, pmem_drain, pmem_persist};
	size_t len;
	int is_pmem;
	char *base = pmem_map_file(job->pool, FILE_SIZE, PMEM_FILE_CREATE, 0600, &len, &is_pmem);
	if (base == NULL)
		die(job->pool);
	work(job, base, &libpmem);
	pmem_unmap(base, len);
}

static void run_pmem2(struct job *job)
{
	struct pmem2_config *config;
	struct pmem2_source *source;
	struct pmem2_map *map;
	int fd = open(job->pool, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, FILE_SIZE) != 0)
		die(job->pool);
	if (pmem2_config_new(&config) != 0 || pmem2_source_from_fd(&source, fd) != 0 ||
	    pmem2_config_set_required_store_granularity(config, PMEM2_GRANULARITY_PAGE) != 0 ||
	    pmem2_map_new(&map, config, source) != 0) {
		pmem2_perror("libpmem2");
		exit(2);
	}
	const struct library libpmem2 = {
		pmem2_get_memcpy_fn(map), pmem2_get_memset_fn(map), pmem2_get_flush_fn(map),
		pmem2_get_drain_fn(map), pmem2_get_persist_fn(map),
	};
	work(job, pmem2_map_get_address(map), &libpmem2);
	pmem2_map_delete(&map);
	pmem2_source_delete(&source);
	pmem2_config_delete(&config);
	close(fd);
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
const struct mode mode_pmem2 = {"pmem2", 1, run_pmem2, check_raw};
