/*
 * Stands in for libpmem's pmem_flush behind the preload library: counts the calls, flushes nothing, prints the count at the end.
 */
#include <libpmem.h>
#include <stdio.h>

static unsigned long flushes;

void pmem_flush(const void *addr, size_t len)
{
	(void)addr;
	(void)len;
	flushes++;
}

__attribute__((destructor)) static void tell(void)
{
	printf("%lu", flushes);
}
