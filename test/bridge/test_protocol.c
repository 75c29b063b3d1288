/*-------------------------------------------------------------------------
 *
 * test_protocol.c
 *	  HELLO, PING, and whatever a worker should never say.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "harness.h"

#define STREAMS		300

static uint64_t random_state = 4711;

static uint32_t next_random(void);
static void hello(Child *child, uint32_t protocol, const char *build);
static void refused(Child *child, const char *what, const char *text);
static void greetings(void);
static void properties(void);
static void malformed(void);
static void put_garbage(Child *child, bool greeted);
static void put_mutants(Child *child, char role);
static void fuzz(void);
static void log_lines(void);

static uint32_t
next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t) (random_state >> 16);
}

static void
hello(Child *child, uint32_t protocol, const char *build)
{
	frame_begin(&child->out, FRAME_HELLO);
	put_u32(&child->out, protocol);
	put_string(&child->out, build);
	put_u8(&child->out, 'p');
	child_send(child);
}

/* The child says why, and ends with status 1 */
static void
refused(Child *child, const char *what, const char *text)
{
	int			status;
	bool		said = expect(child, FRAME_FATAL, 5000);

	status = child_wait(child, 5000);
	ok(said && strstr(child->fatal, text) != NULL && WIFEXITED(status) && WEXITSTATUS(status) == 1,
	   "%s: %s", what, child->fatal);
	child_stop(child);
}

static void
greetings(void)
{
	Child	   *child = child_start();
	bool		right;

	hello(child, BRIDGE_PROTOCOL, OUTBOX_BUILD);
	right = expect(child, FRAME_WELCOME, 5000) && get_u32(&child->frame) == BRIDGE_PROTOCOL &&
		strcmp(get_string(&child->frame), OUTBOX_BUILD) == 0 &&
		strcmp(get_string(&child->frame), rd_kafka_version_str()) == 0;
	ok(right, "HELLO is answered with protocol, build and librdkafka's version");
	send_tag(child, FRAME_PING, 12);
	ok(expect(child, FRAME_PONG, 5000) && get_u32(&child->frame) == 12 && frame_done(&child->frame),
	   "PING is answered");
	ok(expect(child, FRAME_PONG, SIGN_OF_LIFE_MS + 2000) && get_u32(&child->frame) == 0,
	   "a bridge with nothing to say says that it lives");
	hello(child, BRIDGE_PROTOCOL, OUTBOX_BUILD);
	refused(child, "a second HELLO", "doesn't belong");

	child = child_start();
	hello(child, BRIDGE_PROTOCOL + 1, OUTBOX_BUILD);
	refused(child, "another protocol", "is of build");
	child = child_start();
	hello(child, BRIDGE_PROTOCOL, "another");
	refused(child, "another build", "worker is of build another");
	child = child_start();
	send_tag(child, FRAME_PING, 1);
	refused(child, "PING before HELLO", "doesn't belong");
	child = child_start();
	frame_begin(&child->out, FRAME_HELLO);
	child_send(child);
	refused(child, "an empty HELLO", "is of build");
}

/* A refused property is named, its value never */
static void
properties(void)
{
	static const char *const names[] = {"no.such.property", "socket.timeout.ms", "security.protocol"};

	for (int i = 0; i < 3; i++)
	{
		Child	   *child = child_start();
		int			status;

		frame_begin(&child->out, FRAME_HELLO);
		put_u32(&child->out, BRIDGE_PROTOCOL);
		put_string(&child->out, OUTBOX_BUILD);
		put_u8(&child->out, 'c');
		put_string(&child->out, names[i]);
		put_string(&child->out, "hunter2");
		child_send(child);
		expect(child, FRAME_FATAL, 5000);
		status = child_wait(child, 5000);
		ok(WIFEXITED(status) && WEXITSTATUS(status) == 1 &&
		   strstr(child->fatal, names[i]) != NULL && strstr(child->fatal, "hunter2") == NULL,
		   "a refused property: %s", child->fatal);
		child_stop(child);
	}
}

/* One fault a time */
static void
malformed(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);

	frame_begin(&child->out, 200);
	child_send(child);
	refused(child, "an unknown frame", "200");

	child = child_hello('p', bootstraps, NULL);
	frame_begin(&child->out, FRAME_PING);
	put_u8(&child->out, 1);
	child_send(child);
	refused(child, "a PING cut short", "malformed");

	child = child_hello('p', bootstraps, NULL);
	frame_begin(&child->out, FRAME_PURGE);
	put_u8(&child->out, 1);
	child_send(child);
	refused(child, "a PURGE with something more", "malformed");

	child = child_hello('p', bootstraps, NULL);
	frame_begin(&child->out, FRAME_PRODUCE);
	put_u32(&child->out, 0);
	put_string(&child->out, "topic");
	put_blob(&child->out, "k", 1);
	put_blob(&child->out, "v", 1);
	put_u32(&child->out, 4000000000);
	put_string(&child->out, "header");
	put_blob(&child->out, "v", 1);
	child_send(child);
	refused(child, "more headers announced than there are", "malformed");

	child = child_hello('p', bootstraps, NULL);
	frame_begin(&child->out, FRAME_ASK_TOPIC);
	put_u32(&child->out, 5);
	put_u32(&child->out, 0x41414141);
	put_u8(&child->out, 'A');
	put_u8(&child->out, 'A');
	child_send(child);
	refused(child, "a string without its end", "malformed");

	child = child_hello('p', bootstraps, NULL);
	send_consume(child, 1, "topic", 0, 0, false);
	refused(child, "CONSUME to a producer", "producer");

	child = child_hello('c', bootstraps, NULL);
	send_record(child, 1, "topic", "k", "v");
	child_send(child);
	refused(child, "PRODUCE to a consumer", "consumer");

	child = child_hello('p', bootstraps, NULL);
	child_send(child);
	child->out.open = false;
	put_u32(&child->out, 0xffffffff);
	put_u32(&child->out, 0);
	child_send(child);
	refused(child, "a frame of four gigabytes", "impossible length");
}

/* A frame that is wrong in some way, or isn't */
static void
put_garbage(Child *child, bool greeted)
{
	static const uint8_t types[] = {FRAME_PRODUCE, FRAME_OVERSIZE, FRAME_FLUSH, FRAME_PURGE,
		FRAME_ASK_TOPIC, FRAME_CREATE_TOPIC, FRAME_WATCH, FRAME_CONSUME, FRAME_UNCONSUME, FRAME_PING,
	FRAME_HELLO};
	uint32_t	fields = next_random() % 12;

	frame_begin(&child->out, greeted ? types[next_random() % sizeof(types)] :
				(uint8_t) next_random());
	for (uint32_t i = 0; i < fields; i++)
	{
		switch (next_random() % 6)
		{
			case 0:
				put_u8(&child->out, (uint8_t) next_random());
				break;
			case 1:
				put_u32(&child->out, next_random() % 5);
				break;
			case 2:
				put_u32(&child->out, next_random());
				break;
			case 3:
				put_u64(&child->out, next_random());
				break;
			case 4:
				put_string(&child->out, "fuzz");
				break;
			case 5:
				put_blob(&child->out, next_random() % 2 ? NULL : "blob", 4);
				break;
		}
	}
	frame_end(&child->out);
}

/* Good frames, of which a few bytes are changed */
static void
put_mutants(Child *child, char role)
{
	size_t		start = child->out.end;

	for (uint32_t i = 0; i < 3 && role == 'p'; i++)
	{
		frame_item(&child->out, FRAME_PRODUCE);
		put_u32(&child->out, i);
		put_string(&child->out, "many");
		put_blob(&child->out, "key", 3);
		put_blob(&child->out, "value", 5);
		put_u32(&child->out, 2);
		put_string(&child->out, "name");
		put_blob(&child->out, "value", 5);
		put_string(&child->out, "null");
		put_blob(&child->out, NULL, -1);
	}
	frame_begin(&child->out, FRAME_CREATE_TOPIC);
	put_u64(&child->out, 1);
	put_string(&child->out, "made");
	put_u32(&child->out, 3);
	put_u32(&child->out, 1);
	put_string(&child->out, "cleanup.policy");
	put_string(&child->out, "compact");
	frame_begin(&child->out, FRAME_ASK_TOPIC);
	put_string(&child->out, "many");
	if (role == 'c')
	{
		send_consume(child, 1, "many", 0, 0, false);
		send_tag(child, FRAME_UNCONSUME, 1);
	}
	frame_end(&child->out);
	for (uint32_t n = next_random() % 4; n > 0 && child->out.end > start; n--)
		child->out.data[start + next_random() % (child->out.end - start)] ^=
			(unsigned char) (1 << next_random() % 8);
}

/* Whatever comes, the bridge ends by itself or goes on: no signal ends it */
static void
fuzz(void)
{
	int			streams = slow > 1 ? STREAMS / 10 : STREAMS;
	int			refusals = 0;
	int			ends = 0;
	int			others = 0;

	for (int i = 0; i < streams; i++)
	{
		char		role = i % 2 ? 'p' : 'c';
		Child	   *child = i % 5 ? child_hello(role, bootstraps, NULL) : child_start();
		int			status;

		if (i % 3 == 0)
			put_mutants(child, role);
		else
		{
			for (int f = 0; f < 10; f++)
				put_garbage(child, i % 5 != 0);
		}
		child_send(child);
		while (child_read(child, 20 / slow + 1))
			;
		shutdown(child->fd, 1);
		while (child_read(child, 1000))
			;
		status = child_wait(child, 10000);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
			refusals++;
		else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			ends++;
		else
		{
			others++;
			note("stream %d ended with %x", i, (unsigned) status);
		}
		child_stop(child);
	}
	ok(others == 0, "of %d streams of garbage %d were refused and %d passed", streams, refusals, ends);
}

/* librdkafka's log comes through, but not all of a flood */
static void
log_lines(void)
{
	Child	   *child = child_hello('p', bootstraps, "debug", "all", NULL);
	int64_t		start = clock_ms();
	int			lines = 0;
	bool		told = false;

	while (clock_ms() - start < 3000)
	{
		send_string(child, FRAME_ASK_TOPIC, "many");
		while (child_read(child, 20))
		{
			if (child->frame.type != FRAME_LOG)
				continue;
			lines++;
			get_u8(&child->frame);
			told = told || strstr(get_string(&child->frame), "further lines were left out") != NULL;
		}
	}
	ok(lines > 10 && lines <= 21 * 4, "%d log lines in three seconds", lines);
	ok(told, "how many were left out is told");
	child_stop(child);
}

void
test_protocol(void)
{
	greetings();
	properties();
	malformed();
	fuzz();
	log_lines();
}
