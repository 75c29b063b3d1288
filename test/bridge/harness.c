/*-------------------------------------------------------------------------
 *
 * harness.c
 *	  A stand-in for the worker: starts a bridge and talks frames to it.
 *
 * The environment says how: BRIDGE_COMMAND is the program, with a wrapper
 * before it if need be; BRIDGE_SLOW multiplies all patience.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

extern char **environ;

int			slow = 1;

static int	tests;
static int	failures;
static int	bridges;			/* that ended */
static int	faulty;				/* by a signal, or with a sanitizer's status */

static char *const *command(void);
static void count_end(int status);

/*---- TAP ----*/

void
ok(bool passed, const char *format,...)
{
	va_list		args;

	printf("%sok %d - ", passed ? "" : "not ", ++tests);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	if (!passed)
		failures++;
}

void
note(const char *format,...)
{
	va_list		args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

/* What can't be tested with this version of librdkafka */
void
skip(const char *what, const char *why)
{
	printf("ok %d - %s # SKIP %s\n", ++tests, what, why);
	fflush(stdout);
}

int
tap_finish(void)
{
	ok(faulty == 0, "%d of %d bridges ended as they should", bridges - faulty, bridges);
	printf("1..%d\n", tests);
	return failures ? 1 : 0;
}

int64_t
clock_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/*---- the child ----*/

/* BRIDGE_COMMAND, cut at the spaces */
static char *const *
command(void)
{
	static char *argv[32];
	int			n = 0;

	if (argv[0] == NULL)
	{
		char	   *copy = strdup(getenv("BRIDGE_COMMAND") ? getenv("BRIDGE_COMMAND") : "./outbox_bridge");

		for (char *word = strtok(copy, " "); word != NULL && n < 31; word = strtok(NULL, " "))
			argv[n++] = word;
	}
	return argv;
}

/* Starts a bridge as a worker would, with a descriptor too many left open */
Child *
child_start(void)
{
	Child	   *child;
	int			socks[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, socks) != 0)
		abort();
	child = child_start_on(socks[1]);
	close(socks[1]);
	child->fd = socks[0];
	return child;
}

/* Starts a bridge on a given end of a socket pair */
Child *
child_start_on(int sock)
{
	Child	   *child = calloc(1, sizeof(Child));
	posix_spawn_file_actions_t actions;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, sock, BRIDGE_FD);
	posix_spawn_file_actions_addopen(&actions, 9, "/dev/null", O_RDONLY, 0);
	if (getenv("BRIDGE_STDERR") == NULL)
		posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	if (posix_spawnp(&child->pid, command()[0], &actions, NULL, command(), environ) != 0)
	{
		printf("Bail out! could not start %s\n", command()[0]);
		exit(1);
	}
	posix_spawn_file_actions_destroy(&actions);
	child->fd = -1;
	return child;
}

/* The same, with HELLO sent and WELCOME received; properties in pairs, NULL */
Child *
child_hello(char role, const char *servers,...)
{
	Child	   *child = child_start();
	va_list		args;

	frame_begin(&child->out, FRAME_HELLO);
	put_u32(&child->out, BRIDGE_PROTOCOL);
	put_string(&child->out, OUTBOX_BUILD);
	put_u8(&child->out, (uint8_t) role);
	put_string(&child->out, "bootstrap.servers");
	put_string(&child->out, servers);
	va_start(args, servers);
	for (const char *name = va_arg(args, const char *); name != NULL;
		 name = va_arg(args, const char *))
	{
		put_string(&child->out, name);
		put_string(&child->out, va_arg(args, const char *));
	}
	va_end(args);
	child_send(child);
	if (!expect(child, FRAME_WELCOME, 10000))
		note("no WELCOME: %s", child->fatal);
	return child;
}

/* Sends all that is written, without waiting where the child doesn't read */
void
child_send(Child *child)
{
	frame_end(&child->out);
	if (frame_out_write(&child->out, child->fd) == FRAME_IO_CLOSED)
		child->eof = true;
}

/* Reads until a frame is there; false at the end of file or of patience */
bool
child_read(Child *child, int timeout_ms)
{
	int64_t		until = clock_ms() + (int64_t) timeout_ms * slow;

	for (;;)
	{
		struct pollfd pollfd = {child->fd, POLLIN, 0};
		int64_t		left = until - clock_ms();

		if (frame_next(&child->in, &child->frame) == FRAME_OK)
			break;
		if (left <= 0 || child->eof)
			return false;
		if (frame_out_pending(&child->out) > 0)
			pollfd.events |= POLLOUT;
		poll(&pollfd, 1, (int) left);
		if (pollfd.revents & POLLOUT)
			child_send(child);
		if (frame_in_read(&child->in, child->fd, 65536) == FRAME_IO_CLOSED)
			child->eof = true;
	}
	if (child->frame.type == FRAME_FATAL)
	{
		FrameReader copy = child->frame;

		snprintf(child->fatal, sizeof(child->fatal), "%s", get_string(&copy));
	}
	if (child->frame.type == FRAME_PONG)
		child->pongs++;
	if (child->frame.type == FRAME_BROKERS)
	{
		FrameReader copy = child->frame;
		bool		up = get_u8(&copy) != 0;

		snprintf(child->brokers, sizeof(child->brokers), "%s", up ? "up" : get_string(&copy));
	}
	return true;
}

/* Reads until a frame of that type, passing over others */
bool
expect(Child *child, int type, int timeout_ms)
{
	int64_t		until = clock_ms() + (int64_t) timeout_ms * slow;

	while (clock_ms() < until && child_read(child, timeout_ms))
	{
		if (child->frame.type == type)
			return true;
	}
	return false;
}

/* The same for news of a topic; returns its class, -1 if none come */
int
expect_topic(Child *child, const char *name, int timeout_ms)
{
	while (expect(child, FRAME_TOPIC, timeout_ms))
	{
		if (strcmp(get_string(&child->frame), name) == 0)
			return get_u8(&child->frame);
	}
	return -1;
}

bool
expect_brokers(Child *child, bool up, int timeout_ms)
{
	int64_t		until = clock_ms() + (int64_t) timeout_ms * slow;

	while (clock_ms() < until)
	{
		if (child->brokers[0] != '\0' && up == (strcmp(child->brokers, "up") == 0))
			return true;
		if (!child_read(child, 1000) && child->eof)
			break;
	}
	return false;
}

/* The status of a child that ends; -1 if it doesn't */
int
child_wait(Child *child, int timeout_ms)
{
	int64_t		until = clock_ms() + (int64_t) timeout_ms * slow;
	int			status;

	while (child->pid > 0 && clock_ms() < until)
	{
		if (waitpid(child->pid, &status, WNOHANG) == child->pid)
		{
			child->pid = 0;
			count_end(status);
			return status;
		}
		usleep(2000);
	}
	return -1;
}

/* Ends a child as a worker's end would, and looks at how it goes */
void
child_stop(Child *child)
{
	if (child->fd >= 0)
		close(child->fd);
	if (child->pid > 0)
	{
		if (child_wait(child, 5000) < 0)
		{
			kill(child->pid, SIGKILL);
			waitpid(child->pid, NULL, 0);
			bridges++;
			faulty++;
			note("a bridge didn't end with its socket");
		}
	}
	frame_out_free(&child->out);
	frame_in_free(&child->in);
	free(child);
}

/* Status 0 is the end of the socket, 1 a FATAL; SIGKILL is a test's doing */
static void
count_end(int status)
{
	bridges++;
	if ((WIFEXITED(status) && WEXITSTATUS(status) <= 1) ||
		(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
		return;
	note("a bridge ended with wait status %x", (unsigned) status);
	faulty++;
}

/*---- frames ----*/

void
send_record(Child *child, uint32_t index, const char *topic, const char *key,
			const char *value)
{
	frame_item(&child->out, FRAME_PRODUCE);
	put_u32(&child->out, index);
	put_string(&child->out, topic);
	put_blob(&child->out, key, key ? (int32_t) strlen(key) : -1);
	put_blob(&child->out, value, value ? (int32_t) strlen(value) : -1);
	put_u32(&child->out, 0);
}

void
send_simple(Child *child, uint8_t type)
{
	frame_begin(&child->out, type);
	child_send(child);
}

void
send_string(Child *child, uint8_t type, const char *value)
{
	frame_begin(&child->out, type);
	put_string(&child->out, value);
	child_send(child);
}

void
send_tag(Child *child, uint8_t type, uint32_t tag)
{
	frame_begin(&child->out, type);
	put_u32(&child->out, tag);
	child_send(child);
}

void
send_consume(Child *child, uint32_t tag, const char *topic, int32_t partition,
			 int64_t offset, bool first_only)
{
	frame_begin(&child->out, FRAME_CONSUME);
	put_u32(&child->out, tag);
	put_string(&child->out, topic);
	put_u32(&child->out, (uint32_t) partition);
	put_u64(&child->out, (uint64_t) offset);
	put_u8(&child->out, first_only);
	child_send(child);
}

/* Reads the outcomes of the frame at hand, n at most */
int
read_outcomes(Child *child, Outcome *outcomes, int n)
{
	FrameReader *frame = &child->frame;
	int			got = 0;

	while (frame->type == FRAME_OUTCOMES && frame_more(frame) && got < n)
	{
		Outcome    *outcome = &outcomes[got++];

		outcome->index = get_u32(frame);
		outcome->class = get_u8(frame);
		outcome->persisted = get_u8(frame);
		outcome->partition = (int32_t) get_u32(frame);
		outcome->partitions = (int32_t) get_u32(frame);
		outcome->offset = (int64_t) get_u64(frame);
		snprintf(outcome->error, sizeof(outcome->error), "%s", get_string(frame));
		get_string(frame);
	}
	return got;
}

/* Reads n outcomes, in the order they come; returns how many came */
int
collect(Child *child, Outcome *outcomes, int n, int timeout_ms)
{
	int64_t		until = clock_ms() + (int64_t) timeout_ms * slow;
	int			got;

	child_send(child);
	got = read_outcomes(child, outcomes, n);
	while (got < n && clock_ms() < until && expect(child, FRAME_OUTCOMES, timeout_ms))
		got += read_outcomes(child, outcomes + got, n - got);
	return got;
}

/* Reads the next record; good until the next read */
bool
next_record(Child *child, TestRecord *record, int timeout_ms)
{
	FrameReader *frame = &child->frame;

	if (!(frame->type == FRAME_RECORDS && frame_more(frame)) &&
		!expect(child, FRAME_RECORDS, timeout_ms))
		return false;
	memset(record, 0, sizeof(*record));
	record->tag = get_u32(frame);
	snprintf(record->topic, sizeof(record->topic), "%s", get_string(frame));
	record->partition = (int32_t) get_u32(frame);
	record->offset = (int64_t) get_u64(frame);
	record->end = (int64_t) get_u64(frame);
	record->timestamp = (int64_t) get_u64(frame);
	record->key = get_blob(frame, &record->key_len);
	record->value = get_blob(frame, &record->value_len);
	record->nheaders = get_u32(frame);
	for (uint32_t i = 0; i < record->nheaders && i < 8; i++)
	{
		record->header_name[i] = get_string(frame);
		record->header_value[i] = get_blob(frame, &record->header_len[i]);
	}
	return !frame->bad;
}
