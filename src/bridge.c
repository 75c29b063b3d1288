/*-------------------------------------------------------------------------
 *
 * bridge.c
 *	  The worker's end of the bridge, the child process that speaks Kafka.
 *
 * This file starts and watches the child and writes to it; bridge_event.c
 * reads what it says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "bridge_private.h"

#define BRIDGE_PROGRAM		"outbox_bridge"

/*
 * A ping is answered within this time, or the bridge is killed.  Whoever speaks
 * by itself needs none: an idle bridge does so often enough.
 */
#define PING_TIMEOUT_MS		5000
#define PING_BUSY_MS		1000
#define PING_IDLE_MS		10000

StaticAssertDecl(PING_IDLE_MS > SIGN_OF_LIFE_MS, "an idle bridge needs no ping");

/* Bytes read from the socket in one call, and held in all */
#define READ_CHUNK			(1024 * 1024)
#define INPUT_MAX			(16 * 1024 * 1024)

/*
 * The producer frees a whole batch's records before it takes the next one's: by
 * default glibc's malloc keeps seven of a size at hand, and searches for the rest.
 * Before 2.30 it can't count any further than 127.
 */
#define MALLOC_VARIABLE		"GLIBC_TUNABLES"
#define MALLOC_SETTING		"glibc.malloc.tcache_count=20000"
#ifdef __GLIBC_PREREQ
#define MALLOC_IS_SETTABLE	__GLIBC_PREREQ(2, 30)
#else
#define MALLOC_IS_SETTABLE	0
#endif

/* What a frame and a record take beside the bytes they carry */
#define RECORD_OVERHEAD		64
#define HEADER_OVERHEAD		16

StaticAssertDecl(BRIDGE_PRODUCER == 'p' && BRIDGE_CONSUMER == 'c',
				 "roles are part of the protocol");

static int64 monotonic_ms(void);
static void program_path(char *path);
static char **child_environment(const Bridge *bridge);
static void spawn(Bridge *bridge, int child_sock);
static void send_hello(Bridge *bridge, const KafkaProperty *properties, int nproperties);
static void check_memory(Bridge *bridge);
static void write_out(Bridge *bridge);
static void end_command(Bridge *bridge);
static void end_question(Bridge *bridge);

static int64
monotonic_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/*---- start and end ----*/

/* The program lies beside this library */
static void
program_path(char *path)
{
	Dl_info		info;

	if (dladdr((void *) bridge_start, &info) == 0 || info.dli_fname == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not find the directory of the outbox library")));
	strlcpy(path, info.dli_fname, MAXPGPATH);
	get_parent_directory(path);
	join_path_components(path, path[0] ? path : ".", BRIDGE_PROGRAM);
}

/* Our own, and for a producer how to allocate memory, unless that is said there */
static char **
child_environment(const Bridge *bridge)
{
	char	  **result;
	int			n = 0;

	if (!MALLOC_IS_SETTABLE || bridge->role != BRIDGE_PRODUCER ||
		getenv(MALLOC_VARIABLE) != NULL)
		return environ;
	while (environ[n] != NULL)
		n++;
	result = MemoryContextAlloc(bridge->context, (n + 2) * sizeof(char *));
	memcpy(result, environ, n * sizeof(char *));
	result[n] = MALLOC_VARIABLE "=" MALLOC_SETTING;
	result[n + 1] = NULL;
	return result;
}

/*
 * Starts the program, with default signal handling: a worker's own is meant
 * for backends.  It stays in the worker's process group, so that a signal
 * that can't be ignored reaches both.
 */
static void
spawn(Bridge *bridge, int child_sock)
{
	char		path[MAXPGPATH];
	char	   *argv[] = {BRIDGE_PROGRAM, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t	none;
	sigset_t	all;
	int			rc;

	program_path(path);
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, child_sock, BRIDGE_FD);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	rc = posix_spawn(&bridge->pid, path, &actions, &attributes, argv,
					 child_environment(bridge));
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(child_sock);

	if (rc != 0)
	{
		bridge->pid = 0;
		bridge_stop(bridge);
		errno = rc;
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not start program \"%s\": %m", path),
				 errhint("It is installed together with the outbox library, into the same directory.")));
	}
}

Bridge *
bridge_start(BridgeRole role, const KafkaProperty *properties, int nproperties)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "outbox bridge",
												  ALLOCSET_DEFAULT_SIZES);
	Bridge	   *bridge = MemoryContextAllocZero(context, sizeof(Bridge));
	int			socks[2];

	bridge->context = context;
	bridge->role = role;
	bridge->sock = PGINVALID_SOCKET;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, socks) != 0)
	{
		MemoryContextDelete(context);
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("could not create a socket pair: %m")));
	}
	ReserveExternalFD();
	bridge->sock = socks[0];
	spawn(bridge, socks[1]);

	/* HELLO is a ping too: whoever doesn't answer it hangs */
	bridge->ping_pending = true;
	bridge->ping_sent = bridge->watched = monotonic_ms();
	send_hello(bridge, properties, nproperties);
	return bridge;
}

static void
send_hello(Bridge *bridge, const KafkaProperty *properties, int nproperties)
{
	frame_begin(&bridge->out, FRAME_HELLO);
	put_u32(&bridge->out, BRIDGE_PROTOCOL);
	put_string(&bridge->out, OUTBOX_BUILD);
	put_u8(&bridge->out, bridge->role);
	for (int i = 0; i < nproperties; i++)
	{
		if (!kafka_property_for(properties[i].name, bridge->role))
			continue;
		put_string(&bridge->out, properties[i].name);
		put_string(&bridge->out, properties[i].value);
	}
	frame_secret(&bridge->out);
	check_memory(bridge);
	write_out(bridge);
}

void
bridge_stop(Bridge *bridge)
{
	if (bridge == NULL)
		return;
	bridge_reap(bridge, NULL, 0);
	if (bridge->sock != PGINVALID_SOCKET)
	{
		closesocket(bridge->sock);
		ReleaseExternalFD();
	}
	frame_out_free(&bridge->out);
	frame_in_free(&bridge->in);
	MemoryContextDelete(bridge->context);
}

/*---- input and output ----*/

static void
check_memory(Bridge *bridge)
{
	if (bridge->out.failed)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while writing to the bridge.")));
}

/* A bridge that no longer listens may still have said something: read on */
static void
write_out(Bridge *bridge)
{
	if (frame_out_write(&bridge->out, bridge->sock) == FRAME_IO_NOMEM)
		check_memory(bridge);
}

void
bridge_pump(Bridge *bridge)
{
	FrameIO		io;
	size_t		before;

	if (bridge->closed)
		return;
	write_out(bridge);

	/* What is being handed out must stay where it is */
	if (frame_more(&bridge->frame) || bridge->in.end - bridge->in.start > INPUT_MAX)
	{
		bridge->ping_pending = false;
		return;
	}
	before = bridge->in.end - bridge->in.start;
	io = frame_in_read(&bridge->in, bridge->sock, READ_CHUNK);
	if (io == FRAME_IO_NOMEM)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while reading from the bridge.")));
	if (bridge->in.end > before)
	{
		bridge->ping_pending = false;
		bridge->heard = monotonic_ms();
	}
	if (io == FRAME_IO_CLOSED)
		bridge->closed = true;
}

long
bridge_watchdog(Bridge *bridge, bool busy)
{
	int64		interval = busy ? PING_BUSY_MS : PING_IDLE_MS;
	int64		silent;
	int64		now;

	bridge_pump(bridge);
	now = monotonic_ms();

	/* If the worker itself was away for long, that isn't the bridge's fault */
	bridge->ping_waited += Min(now - bridge->watched, PING_BUSY_MS);
	bridge->watched = now;
	if (bridge->closed)
		return PING_IDLE_MS;

	if (bridge->ping_pending && bridge->ping_waited >= PING_TIMEOUT_MS)
	{
		kill(bridge->pid, SIGKILL);
		bridge->closed = true;
		bridge->hung = true;
		return 0;
	}
	silent = now - Max(bridge->ping_sent, bridge->heard);
	if (!bridge->ping_pending && silent >= interval)
	{
		frame_begin(&bridge->out, FRAME_PING);
		put_u32(&bridge->out, ++bridge->ping_number);
		frame_end(&bridge->out);
		check_memory(bridge);
		write_out(bridge);
		bridge->ping_pending = true;
		bridge->ping_sent = now;
		bridge->ping_waited = 0;
	}
	return bridge->ping_pending ? PING_BUSY_MS : interval - silent;
}

pid_t
bridge_pid(const Bridge *bridge)
{
	return bridge->pid;
}

pgsocket
bridge_socket(const Bridge *bridge)
{
	return bridge->sock;
}

const char *
bridge_librdkafka_version(const Bridge *bridge)
{
	return bridge->version;
}

const char *
bridge_librdkafka_faults(const Bridge *bridge)
{
	return bridge->version_faults;
}

bool
bridge_wants_write(const Bridge *bridge)
{
	return !bridge->closed && frame_out_pending(&bridge->out) > 0;
}

bool
bridge_has_input(const Bridge *bridge)
{
	return !bridge->dead && (bridge->closed || frame_more(&bridge->frame) ||
							 bridge->in.end - bridge->in.start != bridge->drained);
}

/*---- what the worker says ----*/

void
bridge_produce(Bridge *bridge, uint32 index, const BridgeRecord *record)
{
	FrameOut   *out = &bridge->out;
	Size		start;
	Size		size = RECORD_OVERHEAD + strlen(record->topic);

	if (bridge->closed)
		return;
	size += record->key ? record->key_len : 0;
	size += record->value ? record->value_len : 0;
	for (int i = 0; i < record->nheaders; i++)
		size += HEADER_OVERHEAD + strlen(record->headers[i].name) + record->headers[i].len;
	if (size > FRAME_MAX)
	{
		frame_begin(out, FRAME_OVERSIZE);
		put_u32(out, index);
		frame_end(out);
		check_memory(bridge);
		return;
	}

	/* A large record gets a frame of its own, so that no frame is too long */
	if (size >= FRAME_GROUP)
		frame_end(out);
	start = out->start;
	frame_item(out, FRAME_PRODUCE);
	put_u32(out, index);
	put_string(out, record->topic);
	put_blob(out, record->key, record->key_len);
	put_blob(out, record->value, record->value_len);
	put_u32(out, record->nheaders);
	for (int i = 0; i < record->nheaders; i++)
	{
		put_string(out, record->headers[i].name);
		put_blob(out, record->headers[i].value, record->headers[i].len);
	}
	check_memory(bridge);

	/* Let the bridge begin with a frame while the next one is being filled */
	if (out->start != start)
		write_out(bridge);
}

static void
end_command(Bridge *bridge)
{
	frame_end(&bridge->out);
	check_memory(bridge);
	if (!bridge->closed)
		write_out(bridge);
}

/* Goes with others in one piece: it wakes the bridge, and its answer us, once */
static void
end_question(Bridge *bridge)
{
	frame_end(&bridge->out);
	check_memory(bridge);
	if (frame_out_pending(&bridge->out) >= FRAME_GROUP)
		bridge_push(bridge);
}

void
bridge_push(Bridge *bridge)
{
	if (!bridge->closed)
		write_out(bridge);
}

void
bridge_flush(Bridge *bridge)
{
	frame_begin(&bridge->out, FRAME_FLUSH);
	end_command(bridge);
}

void
bridge_purge(Bridge *bridge)
{
	frame_begin(&bridge->out, FRAME_PURGE);
	end_command(bridge);
}

void
bridge_ask_topic(Bridge *bridge, const char *topic)
{
	frame_begin(&bridge->out, FRAME_ASK_TOPIC);
	put_string(&bridge->out, topic);
	end_command(bridge);
}

void
bridge_create_topic(Bridge *bridge, uint64 request, const char *topic,
					int32 partitions, int32 replication_factor,
					const KafkaProperty *config, int nconfig)
{
	frame_begin(&bridge->out, FRAME_CREATE_TOPIC);
	put_u64(&bridge->out, request);
	put_string(&bridge->out, topic);
	put_u32(&bridge->out, (uint32) partitions);
	put_u32(&bridge->out, (uint32) replication_factor);
	for (int i = 0; i < nconfig; i++)
	{
		put_string(&bridge->out, config[i].name);
		put_string(&bridge->out, config[i].value);
	}
	end_command(bridge);
}

void
bridge_watch(Bridge *bridge, uint32 tag, const char *topic, int32 partition,
			 int64 time)
{
	frame_begin(&bridge->out, FRAME_WATCH);
	put_u32(&bridge->out, tag);
	put_string(&bridge->out, topic);
	put_u32(&bridge->out, (uint32) partition);
	put_u64(&bridge->out, (uint64) time);
	end_question(bridge);
}

void
bridge_consume(Bridge *bridge, uint32 tag, const char *topic, int32 partition,
			   int64 offset, bool first_only)
{
	frame_begin(&bridge->out, FRAME_CONSUME);
	put_u32(&bridge->out, tag);
	put_string(&bridge->out, topic);
	put_u32(&bridge->out, (uint32) partition);
	put_u64(&bridge->out, (uint64) offset);
	put_u8(&bridge->out, first_only);
	end_question(bridge);
}

void
bridge_unconsume(Bridge *bridge, uint32 tag)
{
	frame_begin(&bridge->out, FRAME_UNCONSUME);
	put_u32(&bridge->out, tag);
	end_question(bridge);
}
