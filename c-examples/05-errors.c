/*
 * 05-errors: every misuse, and what the library says to it. Nothing here crashes, and after each of them the
 * program could go on.
 */
#include "example.h"

#define SIZE 8192

static int surprises;

/* Prints what came of a misuse, and counts it if it is not what the documentation says. */
static void
expect(enum pmemha_rc expected, enum pmemha_rc got, const char *misuse)
{
	printf("%-40s %s\n", misuse, pmemha_strstatus(got));
	if (got != PMEMHA_OK)
		printf("%40s %s\n", "", pmemha_errormsg());
	if (got != expected) {
		printf("%40s expected %s\n", "", pmemha_strstatus(expected));
		surprises++;
	}
}

int
main(int argc, char *argv[])
{
	const char *path = file_argument(argc, argv);
	char *memory = map_file(path, SIZE);
	struct pmemha_session *session = NULL;
	struct pmemha_region *region = NULL;
	struct pmemha_info info;
	char text[8];
	char *anonymous = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	expect(PMEMHA_E_VERSION, pmemha_check_version(PMEMHA_MAJOR_VERSION + 1, 0), "another major version");
	expect(PMEMHA_E_INVAL, pmemha_open(NULL, NULL, NULL), "no place for the handle");
	expect(PMEMHA_E_NO_AGENT, pmemha_open("/nonexistent/agent.sock", NULL, &session), "no agent");
	expect(PMEMHA_E_INVAL, pmemha_open(NULL, "\xff", &session), "a group that is not UTF-8");
	expect(PMEMHA_E_INVAL, pmemha_drain(session, NULL), "a session that was not opened");
	MUST(pmemha_open(NULL, NULL, &session));

	expect(PMEMHA_E_SYSTEM, pmemha_protect_path(session, "/nonexistent/file", 0, &region), "no such file");
	expect(PMEMHA_E_INVAL, pmemha_protect_path(session, NULL, 0, &region), "a path that is NULL");
	expect(PMEMHA_E_INVAL, pmemha_protect_range(session, NULL, SIZE, &region), "an address that is NULL");
	expect(PMEMHA_E_INVAL, pmemha_protect_range(session, memory, 0, &region), "an empty range");
	expect(PMEMHA_E_INVAL, pmemha_protect_range(session, memory, SIZE_MAX, &region), "a range that wraps");
	expect(PMEMHA_E_NOT_A_FILE, pmemha_protect_range(session, anonymous, SIZE, &region), "anonymous memory");
	expect(PMEMHA_E_RANGE, pmemha_protect_range(session, (void *)4096, 64, &region), "nothing is mapped there");
	MUST(pmemha_protect_range(session, memory, SIZE, &region));

	expect(PMEMHA_E_RANGE, pmemha_flush(region, memory + SIZE, 1), "flush past the end");
	expect(PMEMHA_E_RANGE, pmemha_flush(region, anonymous, 1), "flush of other memory");
	expect(PMEMHA_E_INVAL, pmemha_flush(region, memory, SIZE_MAX), "flush that wraps");
	expect(PMEMHA_OK, pmemha_flush(region, memory, 0), "flush of nothing, which is fine");
	expect(PMEMHA_E_RANGE, pmemha_append(region, SIZE, memory, 1), "append past the end");
	expect(PMEMHA_E_INVAL, pmemha_append(region, 1, memory, 1), "append of another offset's address");
	expect(PMEMHA_E_CLOSED, pmemha_flush((struct pmemha_region *)session, memory, 1), "a session for a region");
	expect(PMEMHA_E_CLOSED, pmemha_drain((struct pmemha_session *)memory, NULL), "any pointer for a session");

	expect(PMEMHA_E_UNPUBLISHED, pmemha_wait(session, UINT64_MAX, PMEMHA_LEVEL_LOCAL, 0), "an LSN never drained");
	expect(PMEMHA_E_INVAL, pmemha_wait(session, 0, 17, 0), "no such level");
	expect(PMEMHA_E_INVAL, pmemha_status(session, NULL, sizeof info), "no place for the status");
	expect(PMEMHA_E_INVAL, pmemha_status(session, &info, 0), "a size of 0");
	expect(PMEMHA_E_RANGE, pmemha_status_json(session, text, sizeof text, NULL), "a buffer that is too small");

	struct pmemha_session *copy = session;
	MUST(pmemha_close(&session));
	expect(PMEMHA_E_CLOSED, pmemha_drain(copy, NULL), "a session that was closed");
	expect(PMEMHA_E_CLOSED, pmemha_flush(region, memory, 1), "a region whose session was closed");
	expect(PMEMHA_E_CLOSED, pmemha_close(&copy), "closing twice by a copy");
	expect(PMEMHA_OK, pmemha_close(&session), "closing NULL, which is fine");
	expect(PMEMHA_OK, pmemha_close(NULL), "closing nothing, which is fine");

	munmap(memory, SIZE);
	munmap(anonymous, SIZE);
	printf("%d surprises\n", surprises);
	return surprises != 0;
}
