/*
 * The hot functions of libpmem between marks, for `pmemha-perf instructions`:
 *
 *     marks FILE
 *
 * In this order: nothing; flush of 64 B, protected; drain after it; persist of 64 B, protected; flush of 64 B, not protected.
 */
#include <libpmem.h>
#include <stdlib.h>

#define SIZE (1 << 20)

static void mark(void)
{
	__asm__ volatile("int3");
}

int main(int argc, char **argv)
{
	size_t len;
	int is_pmem;
	static char plain[128];
	if (argc != 2)
		return 2;
	char *p = pmem_map_file(argv[1], SIZE, PMEM_FILE_CREATE, 0600, &len, &is_pmem);
	if (p == NULL)
		return 3;
	/* once before, so that everything is resolved and faulted in */
	for (int i = 0; i < 2; i++) {
		pmem_flush(p, 64);
		pmem_drain();
		pmem_persist(p, 64);
		pmem_flush(plain, 64);
	}
	pmem_flush(p, 64);
	pmem_drain();
	mark();
	mark();
	mark();
	pmem_flush(p, 64);
	mark();
	mark();
	pmem_drain();
	mark();
	mark();
	pmem_persist(p, 64);
	mark();
	pmem_flush(plain, 64);
	mark();
	pmem_flush(plain, 64);
	mark();
	return 0;
}
