/*
 * A key-value service on libpmemobj's own map example (hashmap_tx). It knows nothing of pmemha.
 *
 *   kv POOL LINES [INTERVAL_US]
 *
 * Opens or creates POOL, checks every key that it finds, says so in one line appended to the file LINES
 *
 *   open KEYS HIGHEST DAMAGED
 *
 * and then inserts the keys from HIGHEST + 1 on: a line with the key once each insert has returned.
 * When the pool is full it inserts no more and waits. Stops at SIGTERM, closing the pool.
 */
#include <errno.h>
#include <inttypes.h>
#include <libpmemobj.h>
#include <map.h>
#include <map_hashmap_tx.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ex_common.h"

#define POOL_SIZE (256UL << 20)

POBJ_LAYOUT_BEGIN(kv);
POBJ_LAYOUT_ROOT(kv, struct root);
POBJ_LAYOUT_TOID(kv, struct value);
POBJ_LAYOUT_END(kv);

struct root {
	TOID(struct map) map;
};

struct value {
	uint64_t key;
	uint64_t check;
	char text[112];
};

static volatile sig_atomic_t stop;

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

static uint64_t check_of(uint64_t key)
{
	return (key ^ 0x9e3779b97f4a7c15ULL) * 0xff51afd7ed558ccdULL;
}

struct tally {
	uint64_t keys, highest, damaged;
};

static int visit(uint64_t key, PMEMoid oid, void *arg)
{
	struct tally *t = arg;
	const struct value *v = pmemobj_direct(oid);
	t->keys++;
	if (key > t->highest)
		t->highest = key;
	if (v == NULL || v->key != key || v->check != check_of(key))
		t->damaged++;
	return 0;
}

/* Whether there was room. */
static int insert(PMEMobjpool *pop, struct map_ctx *ctx, TOID(struct map) map, uint64_t key)
{
	volatile int room = 1;
	TX_BEGIN(pop)
	{
		TOID(struct value) v = TX_NEW(struct value);
		D_RW(v)->key = key;
		D_RW(v)->check = check_of(key);
		snprintf(D_RW(v)->text, sizeof(D_RW(v)->text), "value of key %" PRIu64, key);
		if (map_insert(ctx, map, key, v.oid) != 0)
			pmemobj_tx_abort(1);
	}
	TX_ONABORT
	{
		room = 0;
		if (pmemobj_tx_errno() != ENOMEM) {
			fprintf(stderr, "kv: insert of key %" PRIu64 ": %s\n", key, pmemobj_errormsg());
			exit(1);
		}
	}
	TX_END
	return room;
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: kv POOL LINES [INTERVAL_US]\n");
		return 2;
	}
	useconds_t interval = argc > 3 ? (useconds_t)atoi(argv[3]) : 0;
	FILE *lines = fopen(argv[2], "a");
	if (lines == NULL) {
		perror(argv[2]);
		return 1;
	}
	PMEMobjpool *pop = file_exists(argv[1]) == 0
				   ? pmemobj_open(argv[1], POBJ_LAYOUT_NAME(kv))
				   : pmemobj_create(argv[1], POBJ_LAYOUT_NAME(kv), POOL_SIZE, CREATE_MODE_RW);
	if (pop == NULL) {
		fprintf(stderr, "kv: %s: %s\n", argv[1], pmemobj_errormsg());
		return 1;
	}
	signal(SIGTERM, on_term);

	struct map_ctx *ctx = map_ctx_init(MAP_HASHMAP_TX, pop);
	TOID(struct root) root = POBJ_ROOT(pop, struct root);
	if (TOID_IS_NULL(D_RO(root)->map) && map_create(ctx, &D_RW(root)->map, NULL) != 0) {
		fprintf(stderr, "kv: map_create: %s\n", pmemobj_errormsg());
		return 1;
	}
	TOID(struct map) map = D_RO(root)->map;

	struct tally t = {0, 0, 0};
	map_foreach(ctx, map, visit, &t);
	fprintf(lines, "open %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", t.keys, t.highest, t.damaged);
	fflush(lines);

	for (uint64_t key = t.highest + 1; !stop; key++) {
		if (!insert(pop, ctx, map, key)) {
			fprintf(stderr, "kv: the pool is full at key %" PRIu64 "\n", key);
			while (!stop)
				pause();
			break;
		}
		fprintf(lines, "%" PRIu64 "\n", key);
		fflush(lines);
		if (interval != 0)
			usleep(interval);
	}
	map_ctx_free(ctx);
	pmemobj_close(pop);
	fclose(lines);
	return 0;
}
