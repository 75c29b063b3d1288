/*-------------------------------------------------------------------------
 *
 * main.c
 *	  The bridge: a program that speaks Kafka for one worker of outbox.
 *
 * It is started by a worker with one end of a socket pair as descriptor 3,
 * and ends when that closes.  Nothing reaches it but frames, see protocol.h:
 * no arguments, and of the environment only what libraries look at.  It holds
 * nothing that matters, so there is no orderly end: whatever happens, the
 * worker starts another.
 *
 *-------------------------------------------------------------------------
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* struct ucred */
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

/* How much is read from the socket before Kafka's events are served again */
#define READ_CHUNK			(1024 * 1024)
/* A sign of life while no frames are read */
#define PONG_INTERVAL_MS	1000
/* How long the worker has to take our last words */
#define FATAL_TIMEOUT_MS	1000

Client		client;

static FrameIn input;
static int64_t last_pong;
static int64_t last_said;		/* when the worker was told something */

static void isolate(void);
static void close_inherited(void);
static void raise_oom_score(void);
static void wait_for_work(bool more);
static bool read_frames(void);
static void send_pong(uint32_t number);
static void handle_frame(FrameReader *frame);
static void handle_create_or_consume(FrameReader *frame);
static void write_frames(void);

/*
 * Cuts every tie with the server that started us.
 *
 * SIGINT, SIGTERM and SIGHUP come to the worker's whole process group and are
 * the worker's to answer; we end when its end of the socket closes, or with
 * the signal that the kernel sends when it dies.  RLIMIT_CORE is 1 and not 0
 * because the kernel ignores a 0 where core dumps go to a program.
 */
static void
isolate(void)
{
	const struct rlimit no_core = {1, 1};
	struct ucred worker;
	socklen_t	len = sizeof(worker);

	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);

	close_inherited();
	setrlimit(RLIMIT_CORE, &no_core);
	raise_oom_score();

	/* A worker that died before this line can't be told by the signal */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getsockopt(BRIDGE_FD, SOL_SOCKET, SO_PEERCRED, &worker, &len) != 0)
	{
		fprintf(stderr, "outbox_bridge: this program is started by a worker of outbox, not by hand\n");
		_exit(1);
	}
	if (worker.pid != 0 && worker.pid != getppid())
		_exit(0);
}

/* Closes what exec left open: data files, the postmaster's death pipe */
static void
close_inherited(void)
{
	DIR		   *dir;
	struct dirent *entry;

#ifdef SYS_close_range
	if (syscall(SYS_close_range, BRIDGE_FD + 1, ~0U, 0) == 0)
		return;
#endif
	dir = opendir("/proc/self/fd");
	if (dir == NULL)
		fatal("could not list the open descriptors: %s", strerror(errno));
	while ((entry = readdir(dir)) != NULL)
	{
		int			fd = atoi(entry->d_name);

		if (fd > BRIDGE_FD && fd != dirfd(dir))
			close(fd);
	}
	closedir(dir);
}

/* If memory runs out, this process is the one that nobody misses */
static void
raise_oom_score(void)
{
	int			fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, "500", 3) != 3)
		errno = 0;				/* not allowed here: it's but a hint */
	close(fd);
}

int64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void *
xalloc(size_t size)
{
	void	   *result = calloc(1, size);

	if (result == NULL)
		fatal("out of memory");
	return result;
}

char *
xstrdup(const char *value)
{
	char	   *result = xalloc(strlen(value) + 1);

	return strcpy(result, value);
}

/* Ends the bridge, saying why */
void
fatal(const char *format,...)
{
	char		text[1024];
	int64_t		until = now_ms() + FATAL_TIMEOUT_MS;
	struct pollfd pollfd = {BRIDGE_FD, POLLOUT, 0};
	va_list		args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);

	fprintf(stderr, "outbox_bridge: %s\n", text);
	frame_begin(&client.out, FRAME_FATAL);
	put_string(&client.out, text);
	frame_end(&client.out);
	while (frame_out_write(&client.out, BRIDGE_FD) == FRAME_IO_AGAIN &&
		   now_ms() < until)
		poll(&pollfd, 1, 100);
	_exit(1);
}

/* Sleeps until the worker, Kafka or the clock wants something */
static void
wait_for_work(bool more)
{
	struct pollfd fds[2];
	int			timeout = -1;
	int64_t		quiet = last_said + SIGN_OF_LIFE_MS - now_ms();
	uint64_t	count;

	fds[0].fd = BRIDGE_FD;
	fds[0].events = 0;
	if (!produce_blocked())
		fds[0].events |= POLLIN;
	if (frame_out_pending(&client.out) > 0)
		fds[0].events |= POLLOUT;
	fds[1].fd = client.wakeup;
	fds[1].events = POLLIN;

	if (more)
		timeout = 0;
	else if (client.rk != NULL)
		timeout = client_tick(now_ms());
	if (produce_blocked() && timeout != 0)
		timeout = PONG_INTERVAL_MS / 2;

	if (client.rk != NULL && (timeout < 0 || timeout > quiet))
		timeout = quiet > 0 ? (int) quiet : 0;

	if (poll(fds, 2, timeout) < 0 && errno != EINTR)
		fatal("could not wait for events: %s", strerror(errno));

	/*
	 * The event is cleared before what it announces is looked at: whatever
	 * comes after that sets it anew.
	 */
	if (fds[1].revents && read(client.wakeup, &count, sizeof(count)) < 0 &&
		errno != EAGAIN && errno != EINTR)
		fatal("could not read the event descriptor: %s", strerror(errno));

	/* The end of the worker shows even while we don't read */
	if ((fds[0].revents & (POLLHUP | POLLERR)) && produce_blocked())
		_exit(0);
}

/* Reads and handles frames; true if there may be more in the socket */
static bool
read_frames(void)
{
	FrameReader frame;
	FrameStatus status;
	FrameIO		io;

	if (produce_blocked())
	{
		if (now_ms() - last_pong >= PONG_INTERVAL_MS)
		{
			last_pong = now_ms();
			send_pong(0);
		}
		return false;
	}

	io = frame_in_read(&input, BRIDGE_FD, READ_CHUNK);
	while ((status = frame_next(&input, &frame)) == FRAME_OK)
		handle_frame(&frame);
	if (status == FRAME_MALFORMED)
		fatal("received a frame of an impossible length");
	if (io == FRAME_IO_NOMEM)
		fatal("out of memory");
	if (io == FRAME_IO_CLOSED)
		_exit(0);
	return io == FRAME_IO_OK;
}

static void
send_pong(uint32_t number)
{
	frame_begin(&client.out, FRAME_PONG);
	put_u32(&client.out, number);
	frame_end(&client.out);
}

static void
handle_frame(FrameReader *frame)
{
	if ((client.rk == NULL) != (frame->type == FRAME_HELLO))
		fatal("received a frame of type %d where it doesn't belong", frame->type);

	switch (frame->type)
	{
		case FRAME_HELLO:
			client_start(frame);
			frame_in_forget(&input);
			break;
		case FRAME_PING:
			send_pong(get_u32(frame));
			break;
		case FRAME_PRODUCE:
			if (client.role != BRIDGE_PRODUCER)
				fatal("a consumer can't produce");
			produce_frame(frame);
			break;
		case FRAME_OVERSIZE:
			produce_oversize(get_u32(frame));
			break;
		case FRAME_FLUSH:
			produce_end_batch();
			break;
		case FRAME_PURGE:
			produce_purge();
			break;
		case FRAME_ASK_TOPIC:
			topic_ask_for_worker(get_string(frame));
			break;
		default:
			handle_create_or_consume(frame);
			break;
	}
	if (!frame_done(frame))
		fatal("received a malformed frame of type %d", frame->type);
}

static void
handle_create_or_consume(FrameReader *frame)
{
	uint32_t	tag;
	const char *topic;
	int32_t		partition;
	int64_t		offset;
	bool		first_only;
	int64_t		time;

	if (frame->type == FRAME_CREATE_TOPIC)
	{
		admin_create_topic(frame);
		return;
	}
	if (client.role != BRIDGE_CONSUMER)
		fatal("received a frame of type %d, which a producer doesn't know", frame->type);

	tag = get_u32(frame);
	switch (frame->type)
	{
		case FRAME_WATCH:
			topic = get_string(frame);
			partition = (int32_t) get_u32(frame);
			time = (int64_t) get_u64(frame);
			if (frame_done(frame))
				helper_watch(tag, topic, partition, time);
			break;
		case FRAME_CONSUME:
			topic = get_string(frame);
			partition = (int32_t) get_u32(frame);
			offset = (int64_t) get_u64(frame);
			first_only = get_u8(frame) != 0;
			if (frame_done(frame))
				consume_start(tag, topic, partition, offset, first_only);
			break;
		case FRAME_UNCONSUME:
			if (frame_done(frame))
				consume_stop(tag);
			break;
		default:
			fatal("received a frame of unknown type %d", frame->type);
	}
}

static void
write_frames(void)
{
	frame_end(&client.out);
	if (client.rk != NULL && frame_out_pending(&client.out) == 0 &&
		now_ms() - last_said >= SIGN_OF_LIFE_MS)
		send_pong(0);
	if (frame_out_pending(&client.out) > 0)
		last_said = now_ms();
	switch (frame_out_write(&client.out, BRIDGE_FD))
	{
		case FRAME_IO_CLOSED:
			_exit(0);
		case FRAME_IO_NOMEM:
			_exit(1);			/* no memory to say so */
		default:
			break;
	}
}

int
main(void)
{
	bool		more = false;

	isolate();
	client.wakeup = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (client.wakeup < 0)
		fatal("could not create an event descriptor: %s", strerror(errno));

	for (;;)
	{
		wait_for_work(more);
		more = read_frames();
		if (client.rk != NULL && client_serve())
			more = true;
		write_frames();
	}
}
