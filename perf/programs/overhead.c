/*
 * What `pmemha-perf overhead` times: a libpmemobj program that knows nothing of pmemha.
 *
 *   overhead MODE POOL WARM COUNT
 *
 *   hashmap   inserts into libpmemobj's own map example, hashmap_tx, one a transaction
 *   tx        transactions that snapshot and overwrite one of 4096 objects of 256 bytes
 *   persist   256 bytes stored and persisted, at one of 4096 places
 *
 * WARM operations, then COUNT more under the clock; prints their rate per second.
 */
#include <inttypes.h>
#include <libpmemobj.h>
#include <map.h>
#include <map_hashmap_tx.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define POOL_SIZE (512UL << 20)
#define OBJECTS 4096
#define BYTES 256

POBJ_LAYOUT_BEGIN(overhead);
POBJ_LAYOUT_ROOT(overhead, struct root);
POBJ_LAYOUT_TOID(overhead, struct object);
POBJ_LAYOUT_END(overhead);

struct object {
	unsigned char bytes[BYTES];
};

struct root {
	TOID(struct map) map;
	TOID(struct object) objects;
};

struct job {
	PMEMobjpool *pop;
	struct map_ctx *ctx;
	struct root *root;
};

static void die(const char *what)
{
	fprintf(stderr, "overhead: %s: %s\n", what, pmemobj_errormsg());
	exit(1);
}

static void one_insert(struct job *job, uint64_t n)
{
	if (map_insert(job->ctx, job->root->map, n, OID_NULL) != 0)
		die("map_insert");
}

static struct object *object(struct job *job, uint64_t n)
{
	struct object *objects = pmemobj_direct(job->root->objects.oid);
	return &objects[(n * 2654435761u) % OBJECTS];
}

static void one_tx(struct job *job, uint64_t n)
{
	struct object *o = object(job, n);
	TX_BEGIN(job->pop)
	{
		pmemobj_tx_add_range_direct(o, BYTES);
		memset(o->bytes, (int)n, BYTES);
	}
	TX_ONABORT
	{
		die("transaction");
	}
	TX_END
}

static void one_persist(struct job *job, uint64_t n)
{
	struct object *o = object(job, n);
	memset(o->bytes, (int)n, BYTES);
	pmemobj_persist(job->pop, o, BYTES);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: overhead hashmap|tx|persist POOL WARM COUNT\n");
		return 2;
	}
	void (*one)(struct job *, uint64_t) = strcmp(argv[1], "hashmap") == 0 ? one_insert
					      : strcmp(argv[1], "tx") == 0    ? one_tx
									      : one_persist;
	uint64_t warm = strtoull(argv[3], NULL, 10), count = strtoull(argv[4], NULL, 10);
	struct job job = {0};
	job.pop = pmemobj_create(argv[2], POBJ_LAYOUT_NAME(overhead), POOL_SIZE, 0600);
	if (job.pop == NULL)
		die(argv[2]);
	TOID(struct root) root = POBJ_ROOT(job.pop, struct root);
	job.root = D_RW(root);
	job.ctx = map_ctx_init(MAP_HASHMAP_TX, job.pop);
	if (map_create(job.ctx, &job.root->map, NULL) != 0)
		die("map_create");
	if (pmemobj_zalloc(job.pop, &job.root->objects.oid, OBJECTS * sizeof(struct object), 1) != 0)
		die("objects");

	for (uint64_t n = 1; n <= warm; n++)
		one(&job, n);
	double start = now();
	for (uint64_t n = warm + 1; n <= warm + count; n++)
		one(&job, n);
	printf("%.0f\n", (double)count / (now() - start));
	map_ctx_free(job.ctx);
	pmemobj_close(job.pop);
	return 0;
}
