/*
 * Modes on libpmemobj: transactions, the atomic API, memcpy with flags, huge objects, threads.
 */
#include "workload.h"

#include <errno.h>
#include <libpmemobj.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#define LAYOUT "workload"
#define POOL_SIZE (16UL << 20)
#define HUGE_POOL_SIZE (64UL << 20)

POBJ_LAYOUT_BEGIN(workload);
POBJ_LAYOUT_ROOT(workload, struct root);
POBJ_LAYOUT_TOID(workload, struct node);
POBJ_LAYOUT_TOID(workload, struct elem);
POBJ_LAYOUT_END(workload);

/* of the last WINDOW operations at most, the oldest first: a pool is never full */
#define WINDOW 1000
struct list {
	TOID(struct node) first;
	TOID(struct node) last;
	uint64_t count;
	uint64_t sum;
};

struct node {
	TOID(struct node) next;
	uint64_t n;
	uint64_t value;
	uint64_t len;
	unsigned char body[];
};

struct elem {
	uint64_t n;
	uint64_t value;
	POBJ_LIST_ENTRY(struct elem) at;
};

#define BLOCK 20000
#define BLOCKS 8
struct block {
	uint64_t n;
	unsigned char body[BLOCK];
};

struct root {
	struct list lists[MAX_THREADS];
	POBJ_LIST_HEAD(elems, struct elem) elems;
	struct block blocks[BLOCKS]; /* of operation n in n % BLOCKS */
	uint64_t current;
	PMEMoid huge[2];
};

/* A poolset is a short text that names its parts. */
static int is_poolset(const char *pool)
{
	static const char set[] = "PMEMPOOLSET";
	char head[sizeof(set) - 1] = "";
	FILE *f = fopen(pool, "r");
	if (f == NULL)
		return 0;
	size_t n = fread(head, 1, sizeof(head), f);
	fclose(f);
	return n == sizeof(head) && memcmp(head, set, n) == 0;
}

/* pmemobj_open crashes on an empty file. */
static int is_too_short(const char *pool)
{
	struct stat st;
	return !is_poolset(pool) && (stat(pool, &st) != 0 || st.st_size < (off_t)PMEMOBJ_MIN_POOL);
}

static PMEMobjpool *create(struct job *job, size_t size)
{
	const char *mib = getenv("WORKLOAD_POOL_MIB");
	if (mib != NULL)
		size = strtoul(mib, NULL, 10) << 20;
	if (is_poolset(job->pool))
		size = 0; /* its parts have sizes */
	PMEMobjpool *pop = job->resumes ? pmemobj_open(job->pool, LAYOUT)
					: pmemobj_create(job->pool, LAYOUT, size, 0600);
	if (pop == NULL) {
		fprintf(stderr, "%s: %s\n", job->pool, pmemobj_errormsg());
		exit(2);
	}
	pmemobj_root(pop, sizeof(struct root));
	printf("ready\n");
	fflush(stdout);
	return pop;
}

/*
 * A pool whose creation was cut short does not open. That is so without us too, and legal only while
 * nothing was acknowledged.
 */
static PMEMobjpool *open_pool(struct job *job, const char **wrong)
{
	int any = 0;
	for (unsigned t = 0; t < job->threads; t++)
		any |= job->acks->thread[t].done != 0;
	int too_short = is_too_short(job->pool);
	PMEMobjpool *pop = too_short ? NULL : pmemobj_open(job->pool, LAYOUT);
	*wrong = NULL;
	if (pop == NULL && any)
		*wrong = too_short ? "pool missing or short" : pmemobj_errormsg();
	return pop;
}

static struct root *root_of(PMEMobjpool *pop)
{
	return pmemobj_direct(pmemobj_root(pop, sizeof(struct root)));
}

static const char *finish(struct job *job, PMEMobjpool *pop, const char *wrong)
{
	pmemobj_close(pop);
	if (wrong == NULL && pmemobj_check(job->pool, LAYOUT) != 1)
		wrong = "pmemobj_check finds the pool inconsistent";
	return wrong;
}

/* -- transactions -- */

static uint64_t body_len(uint64_t n)
{
	return mix(n) % 600;
}

static TOID(struct node) new_node(uint64_t n, uint64_t seed)
{
	uint64_t len = body_len(n);
	TOID(struct node) node = TX_ALLOC(struct node, sizeof(struct node) + len);
	D_RW(node)->next = TOID_NULL(struct node);
	D_RW(node)->n = n;
	D_RW(node)->value = mix(n ^ seed);
	D_RW(node)->len = len;
	memset(D_RW(node)->body, (int)(n & 0xff), len);
	return node;
}

/* Appends operation n; the oldest goes when the window is full. */
static void push(PMEMobjpool *pop, struct list *list, uint64_t n, uint64_t seed)
{
	TX_BEGIN(pop)
	{
		TOID(struct node) node = new_node(n, seed);
		pmemobj_tx_add_range_direct(list, sizeof(*list));
		if (TOID_IS_NULL(list->last))
			list->first = node;
		else
			TX_SET(list->last, next, node);
		list->last = node;
		list->sum += D_RO(node)->value;
		TOID(struct node) oldest = list->first;
		if (list->count == WINDOW) {
			list->sum -= D_RO(oldest)->value;
			list->first = D_RO(oldest)->next;
			TX_FREE(oldest);
		} else {
			list->count++;
			/* every tenth operation moves the oldest to another place */
			if (n % 10 == 0) {
				size_t size = sizeof(struct node) + D_RO(oldest)->len;
				TOID(struct node) copy = TX_ALLOC(struct node, size);
				memcpy(D_RW(copy), D_RO(oldest), size);
				list->first = copy;
				TX_FREE(oldest);
			}
		}
	}
	TX_ONABORT
	{
		fprintf(stderr, "transaction aborted: %s\n", pmemobj_errormsg());
		exit(2);
	}
	TX_END
}

static const char *check_list(struct list *list, uint64_t *found)
{
	uint64_t sum = 0, count = 0, n = 0;
	for (TOID(struct node) node = list->first; !TOID_IS_NULL(node); node = D_RO(node)->next) {
		const struct node *d = D_RO(node);
		if (d == NULL || (n != 0 && d->n != n + 1))
			return "list: wrong number in a node";
		n = d->n;
		if (d->len != body_len(n))
			return "list: wrong length in a node";
		for (uint64_t i = 0; i < d->len; i++)
			if (d->body[i] != (n & 0xff))
				return "list: wrong body";
		sum += d->value;
		if (++count > list->count)
			return "list: longer than its count";
	}
	if (count != list->count || (n > WINDOW ? WINDOW : n) != count)
		return "list: shorter than its count";
	if (!TOID_IS_NULL(list->last) && D_RO(list->last)->n != n)
		return "list: wrong last node";
	if (sum != list->sum)
		return "list: wrong sum";
	*found = n;
	return NULL;
}

static void run_tx(struct job *job)
{
	PMEMobjpool *pop = create(job, POOL_SIZE);
	for (uint64_t n = job->first[0]; n <= job->count; n++) {
		push(pop, &root_of(pop)->lists[0], n, job->seed);
		acknowledge(job, 0, n);
	}
	pmemobj_close(pop);
}

static const char *check_lists(struct job *job, uint64_t *found)
{
	const char *wrong;
	PMEMobjpool *pop = open_pool(job, &wrong);
	if (pop == NULL)
		return wrong;
	for (unsigned t = 0; wrong == NULL && t < job->threads; t++)
		wrong = check_list(&root_of(pop)->lists[t], &found[t]);
	return finish(job, pop, wrong);
}

const struct mode mode_tx = {"tx", 1, run_tx, check_lists};

/* -- threads -- */

struct worker {
	struct job *job;
	PMEMobjpool *pop;
	unsigned thread;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	for (uint64_t n = w->job->first[w->thread]; n <= w->job->count; n++) {
		push(w->pop, &root_of(w->pop)->lists[w->thread], n, w->job->seed);
		acknowledge(w->job, w->thread, n);
	}
	return NULL;
}

static void run_threads(struct job *job)
{
	PMEMobjpool *pop = create(job, HUGE_POOL_SIZE);
	pthread_t id[MAX_THREADS];
	struct worker w[MAX_THREADS];
	for (unsigned t = 0; t < job->threads; t++) {
		w[t] = (struct worker){job, pop, t};
		if (pthread_create(&id[t], NULL, work, &w[t]) != 0)
			die("pthread_create");
	}
	for (unsigned t = 0; t < job->threads; t++)
		pthread_join(id[t], NULL);
	pmemobj_close(pop);
}

const struct mode mode_threads = {"threads", 4, run_threads, check_lists};

/* -- atomic API -- */

static int construct(PMEMobjpool *pop, void *ptr, void *arg)
{
	struct elem *e = ptr;
	e->n = *(uint64_t *)arg;
	e->value = mix(e->n);
	pmemobj_persist(pop, e, sizeof(*e));
	return 0;
}

static void run_atomic(struct job *job)
{
	PMEMobjpool *pop = create(job, POOL_SIZE);
	uint64_t len = 0;
	TOID(struct elem) e;
	POBJ_LIST_FOREACH (e, &root_of(pop)->elems, at)
		len++;
	/* the removal that an earlier run did not come to */
	if (len > 1000)
		POBJ_LIST_REMOVE_FREE(pop, &root_of(pop)->elems, POBJ_LIST_FIRST(&root_of(pop)->elems), at);
	for (uint64_t n = job->first[0]; n <= job->count; n++) {
		struct root *r = root_of(pop);
		if (OID_IS_NULL(POBJ_LIST_INSERT_NEW_TAIL(pop, &r->elems, at, sizeof(struct elem), construct, &n)))
			die("POBJ_LIST_INSERT_NEW_TAIL");
		/* a window of 1,000 elements: the oldest goes */
		if (n > 1000)
			POBJ_LIST_REMOVE_FREE(pop, &r->elems, POBJ_LIST_FIRST(&r->elems), at);
		acknowledge(job, 0, n);
	}
	pmemobj_close(pop);
}

static const char *check_atomic(struct job *job, uint64_t *found)
{
	const char *wrong;
	PMEMobjpool *pop = open_pool(job, &wrong);
	if (pop == NULL)
		return wrong;
	uint64_t prev = 0, len = 0;
	TOID(struct elem) e;
	POBJ_LIST_FOREACH (e, &root_of(pop)->elems, at) {
		if (prev != 0 && D_RO(e)->n != prev + 1)
			wrong = "elements not in order";
		if (D_RO(e)->value != mix(D_RO(e)->n))
			wrong = "element not constructed";
		prev = D_RO(e)->n;
		/* links that lead in a circle would be followed for ever */
		if (wrong != NULL || ++len > 1001)
			break;
	}
	if (wrong == NULL && len != (prev > 1000 ? 1000 : prev) && len != 1001)
		wrong = "wrong number of elements";
	*found = prev;
	return finish(job, pop, wrong);
}

const struct mode mode_atomic = {"atomic", 1, run_atomic, check_atomic};

/* -- memcpy and memset with flags -- */

static void run_memcpy(struct job *job)
{
	static const unsigned flags[] = {
		PMEMOBJ_F_MEM_NODRAIN,
		PMEMOBJ_F_MEM_NODRAIN | PMEMOBJ_F_MEM_NONTEMPORAL,
		PMEMOBJ_F_MEM_NODRAIN | PMEMOBJ_F_MEM_TEMPORAL,
		PMEMOBJ_F_MEM_NODRAIN | PMEMOBJ_F_MEM_WC,
		PMEMOBJ_F_MEM_NODRAIN | PMEMOBJ_F_MEM_WB,
		PMEMOBJ_F_MEM_NOFLUSH,
		PMEMOBJ_F_RELAXED,
		0,
	};
	PMEMobjpool *pop = create(job, POOL_SIZE);
	struct root *r = root_of(pop);
	unsigned char src[BLOCK];
	for (uint64_t n = job->first[0]; n <= job->count; n++) {
		struct block *b = &r->blocks[n % BLOCKS];
		unsigned f = flags[mix(n) % (sizeof(flags) / sizeof(*flags))];
		size_t cut = mix(n + 1) % BLOCK, shift = mix(n + 2) % 64;
		memset(src, (int)(n & 0xff), sizeof(src));
		pmemobj_memcpy(pop, &b->n, &n, sizeof(n), PMEMOBJ_F_MEM_NODRAIN);
		pmemobj_memcpy(pop, b->body, src, cut, f);
		pmemobj_memset(pop, b->body + cut, (int)(n & 0xff), BLOCK - cut, f);
		/* overlapping move of equal bytes */
		if (cut > 128)
			pmemobj_memmove(pop, b->body + shift, b->body, cut - 64, f);
		if (f & PMEMOBJ_F_MEM_NOFLUSH)
			pmemobj_flush(pop, b, sizeof(*b));
		pmemobj_drain(pop);
		r->current = n;
		pmemobj_persist(pop, &r->current, sizeof(r->current));
		acknowledge(job, 0, n);
	}
	pmemobj_close(pop);
}

static const char *check_memcpy(struct job *job, uint64_t *found)
{
	const char *wrong;
	PMEMobjpool *pop = open_pool(job, &wrong);
	if (pop == NULL)
		return wrong;
	struct root *r = root_of(pop);
	/* the one before the oldest is being written over by the operation that follows */
	for (uint64_t n = r->current; wrong == NULL && n != 0 && n + BLOCKS - 1 > r->current; n--) {
		const struct block *b = &r->blocks[n % BLOCKS];
		if (b->n != n)
			wrong = "block with another number";
		for (size_t i = 0; wrong == NULL && i < BLOCK; i++)
			if (b->body[i] != (n & 0xff))
				wrong = "block with a wrong body";
	}
	*found = r->current;
	return finish(job, pop, wrong);
}

const struct mode mode_memcpy = {"memcpy", 1, run_memcpy, check_memcpy};

/* -- huge objects -- */

struct huge {
	uint64_t n;
	uint64_t len;
	unsigned char body[];
};

/* three of PMDK's chunks of 256 KiB: a huge allocation, and always one that fits into a freed one */
static size_t huge_len(uint64_t n)
{
	return (600UL << 10) + mix(n) % (100UL << 10);
}

static void run_huge(struct job *job)
{
	PMEMobjpool *pop = create(job, HUGE_POOL_SIZE);
	struct root *r = root_of(pop);
	for (uint64_t n = job->first[0]; n <= job->count; n++) {
		size_t len = huge_len(n);
		TX_BEGIN(pop)
		{
			PMEMoid oid = pmemobj_tx_xalloc(sizeof(struct huge) + len, 1, POBJ_XALLOC_NO_FLUSH);
			struct huge *h = pmemobj_direct(oid);
			h->n = n;
			h->len = len;
			pmemobj_persist(pop, h, sizeof(*h));
			pmemobj_memset_persist(pop, h->body, (int)(n & 0xff), len);
			pmemobj_tx_add_range_direct(&r->huge[n % 2], sizeof(PMEMoid));
			pmemobj_tx_add_range_direct(&r->current, sizeof(r->current));
			if (!OID_IS_NULL(r->huge[n % 2]))
				pmemobj_tx_free(r->huge[n % 2]);
			r->huge[n % 2] = oid;
			r->current = n;
		}
		TX_ONABORT
		{
			fprintf(stderr, "huge transaction %lu: %s\n", (unsigned long)n, pmemobj_errormsg()); exit(2);
		}
		TX_END
		acknowledge(job, 0, n);
	}
	pmemobj_close(pop);
}

static const char *check_huge(struct job *job, uint64_t *found)
{
	const char *wrong;
	PMEMobjpool *pop = open_pool(job, &wrong);
	if (pop == NULL)
		return wrong;
	struct root *r = root_of(pop);
	for (uint64_t n = r->current; wrong == NULL && n != 0 && n + 2 > r->current; n--) {
		const struct huge *h = pmemobj_direct(r->huge[n % 2]);
		if (h == NULL || h->n != n || h->len != huge_len(n))
			wrong = "huge object missing or with a wrong head";
		for (size_t i = 0; wrong == NULL && i < h->len; i++)
			if (h->body[i] != (n & 0xff))
				wrong = "huge object with a wrong body";
	}
	*found = r->current;
	return finish(job, pop, wrong);
}

const struct mode mode_huge = {"huge", 1, run_huge, check_huge};
