/*-------------------------------------------------------------------------
 *
 * poison.c
 *	  A library to preload, with which some records kill the bridge.
 *
 * A record with a header "poison" ends the process that hands it to librdkafka,
 * in the way that the header's value says:
 *
 *	segv, abort			a fault
 *	exit				an exit
 *	kill, term			a signal, as if somebody had sent it
 *	slow				a fault, after a second and a half
 *	file				what the file says that $OUTBOX_TEST_POISON names, if it exists
 *
 * If that file says "all", any record is a fault.  Other programs notice nothing.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

/* What the file says, "" if there is none */
static const char *
read_file(void)
{
	static char word[16];
	const char *name = getenv("OUTBOX_TEST_POISON");
	FILE	   *file = name != NULL ? fopen(name, "r") : NULL;

	word[0] = '\0';
	if (file == NULL)
		return word;
	if (fscanf(file, "%15s", word) != 1)
		word[0] = '\0';
	fclose(file);
	return word;
}

static int
is_word(const char *word, const void *value, ssize_t size)
{
	return size == (ssize_t) strlen(word) && memcmp(word, value, (size_t) size) == 0;
}

static void
end_process(const void *value, ssize_t size)
{
	const struct timespec slow = {1, 500 * 1000 * 1000};

	if (is_word("segv", value, size))
		raise(SIGSEGV);
	else if (is_word("abort", value, size))
		abort();
	else if (is_word("exit", value, size))
		_exit(3);
	else if (is_word("kill", value, size))
		raise(SIGKILL);
	else if (is_word("term", value, size))
	{
		signal(SIGTERM, SIG_DFL);
		raise(SIGTERM);
	}
	else if (is_word("slow", value, size))
	{
		nanosleep(&slow, NULL);
		raise(SIGSEGV);
	}
}

/* In front of librdkafka's own; every record of outbox has a header */
rd_kafka_resp_err_t
rd_kafka_header_add(rd_kafka_headers_t *hdrs, const char *name, ssize_t name_size,
					const void *value, ssize_t value_size)
{
	static rd_kafka_resp_err_t (*real) (rd_kafka_headers_t *, const char *, ssize_t,
										const void *, ssize_t);
	const char *word;

	if (real == NULL)
		*(void **) &real = dlsym(RTLD_NEXT, "rd_kafka_header_add");
	word = read_file();
	if (strcmp(word, "all") == 0)
		raise(SIGSEGV);
	if (value != NULL && strcmp(name, "poison") == 0)
	{
		if (is_word("file", value, value_size))
			end_process(word, (ssize_t) strlen(word));
		else
			end_process(value, value_size);
	}
	return real(hdrs, name, name_size, value, value_size);
}
