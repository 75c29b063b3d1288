/*-------------------------------------------------------------------------
 *
 * outbox.h
 *	  Settings, shared memory and the numbers every part agrees on.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_H
#define OUTBOX_H

#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

/* Names of the extension and its schema */
#define OUTBOX_EXTENSION	"outbox"
#define OUTBOX_SCHEMA		"outbox"
#define OUTBOX_VERSION		"1.0"

#define OUTBOX_LANES		16	/* the keys are spread over them */
#define OUTBOX_LANE_LATE	16	/* of what has lost its turn: sent again, or delayed */
#define OUTBOX_LANE_NONE	(-1)	/* of a message that outbox.delayed brings out */
#define OUTBOX_SWEPT_LANES	17	/* rows of outbox.lane */
#define OUTBOX_SEGMENTS		16	/* of the ring; segment -1 is besides it */
#define OUTBOX_SEGMENT_KEPT (-1)	/* what outlives its segment */

/* Databases of one instance that may have the extension */
#define OUTBOX_MAX_DATABASES 256

/* Kafka's own limit of a topic's name */
#define OUTBOX_TOPIC_LEN	249

/* Workers of each kind that a database may have */
#define OUTBOX_MAX_PUBLISHERS 16
#define OUTBOX_MAX_CONSUMERS 16
#define OUTBOX_WORKERS_PER_DATABASE (OUTBOX_MAX_PUBLISHERS + OUTBOX_MAX_CONSUMERS)

/* Payload, key and headers together; the wire adds about this much */
#define OUTBOX_MESSAGE_OVERHEAD 200

/* outbox.log.status */
typedef enum MessageStatus
{
	STATUS_NEW = 'N',
	STATUS_SENT = 'S',
	STATUS_CONFIRMED = 'C',
	STATUS_FAILED = 'F',
	STATUS_DEAD = 'D'
} MessageStatus;

#define OUTBOX_ATTEMPTS_MAX 32767	/* outbox.log.attempts goes no further */

/* Columns of outbox.log and of each of its segments */
enum
{
	Anum_log_id = 1,
	Anum_log_segment,
	Anum_log_lane,
	Anum_log_op,
	Anum_log_status,
	Anum_log_attempts,
	Anum_log_updated_at,
	Anum_log_result,
	Anum_log_error,
	Anum_log_topic,
	Anum_log_key,
	Anum_log_payload,
	Anum_log_headers,
	Natts_log = Anum_log_headers
};

/* Columns of outbox.lane */
enum
{
	Anum_lane_lane = 1,
	Anum_lane_cursor
};

/* Settings */
extern bool outbox_enabled;
extern char *outbox_databases;
extern char *outbox_bootstrap_servers;
extern char *outbox_kafka_config;
extern char *outbox_kafka_secrets_file;
extern int	outbox_ack_timeout;		/* milliseconds */
extern int	outbox_max_message_bytes;
extern int	outbox_poison_attempts;
extern int	outbox_consumers;
extern int	outbox_publishers;
extern int	outbox_retention;		/* seconds */
extern int	outbox_inbox_retention; /* seconds */

/*
 * A worker as outbox.worker shows it.  Written by the launcher and by the
 * worker itself, under OutboxShared.lock.
 */
typedef enum WorkerKind
{
	WORKER_NONE = 0,
	WORKER_LAUNCHER,
	WORKER_PROBE,				/* looks for the extension, then ends */
	WORKER_PUBLISHER,
	WORKER_CONSUMER
} WorkerKind;

#define WORKER_KINDS		(WORKER_CONSUMER + 1)

#define WORKER_TEXT_LEN		256

typedef struct WorkerSlot
{
	WorkerKind	kind;
	int			number;			/* among those of its kind and database */
	pid_t		pid;			/* 0: not running */
	PGPROC	   *proc;			/* whose latch to set, NULL if none */
	char		state[64];
	TimestampTz since;			/* of the state */
	int64		restarts;
	char		last_error[WORKER_TEXT_LEN];
	TimestampTz last_error_at;	/* 0: none */
	pid_t		bridge_pid;		/* 0: none */
	int64		bridge_restarts;
	char		bridge_last_exit[WORKER_TEXT_LEN];
	char		librdkafka_version[32];
} WorkerSlot;

/* What is emptied when it is old; see retention.h */
typedef enum RetentionRing
{
	RETENTION_LOG,
	RETENTION_INBOX
} RetentionRing;

#define RETENTION_RINGS		(RETENTION_INBOX + 1)

/* Who is in its way */
typedef struct RetentionWait
{
	char		why[WORKER_TEXT_LEN];	/* "" if nobody is */
	TimestampTz since;
} RetentionWait;

/* What a database's sessions and workers share */
typedef struct DatabaseSlot
{
	Oid			oid;			/* InvalidOid: the slot is free */

	/* the launcher's; protected by OutboxShared.lock */
	bool		has_extension;	/* it may have; a worker that finds none clears it */
	uint32		extension_epoch;	/* raised whenever has_extension is set */
	int			hold_off;		/* utility commands that want no workers here */

	/* capture; see message_id.c */
	pg_atomic_uint32 floor_known;	/* the clock is above every id in the log */
	pg_atomic_uint32 segment;	/* where new messages go; see ring.h */
	pg_atomic_uint64 segment_since; /* a MessageClock: they have since then */
	pg_atomic_uint64 segment_due;	/* a MessageClock: and do until then */
	pg_atomic_uint32 segments_used; /* bit i: segment i, bit 16: segment -1 */

	pg_atomic_uint64 segment_end[OUTBOX_SEGMENTS + 1];	/* a MessageClock: no id in it is
														 * above that; see ring.h */
	pg_atomic_uint32 reopened[OUTBOX_SEGMENTS]; /* raised when there may be
												 * something new to keep in it */

	pg_atomic_uint32 inbox_used;	/* see inbox_ring.c */
	pg_atomic_uint32 inbox_segment; /* where new rows of the inbox go */

	/* wake-up; see announce.c */
	pg_atomic_uint32 generation[OUTBOX_MAX_PUBLISHERS]; /* raised when a transaction
														 * ends that wrote to one of
														 * the publisher's lanes */
	pg_atomic_uint32 publishers_asleep; /* a bit each */
	pg_atomic_uint32 settings_generation;	/* raised when the tables that tell
											 * the workers what to do changed */

	/* recovery, which the first publisher does for all; see recovery.c */
	pg_atomic_uint64 recovery_due;	/* a TimestampTz: when its next step is */
	pg_atomic_uint64 recovery_limit;	/* a MessageClock: it may have come so far */

	pg_atomic_uint64 acknowledged;	/* messages, also those not marked SENT yet */

	/* counters since the server started */
	pg_atomic_uint64 published;
	pg_atomic_uint64 republished;
	pg_atomic_uint64 confirmed;
	pg_atomic_uint64 failed;
	pg_atomic_uint64 dead;

	/* the rest is protected by OutboxShared.lock */
	bool		brokers_known;
	bool		brokers_up;
	char		brokers_reason[WORKER_TEXT_LEN];
	RetentionWait retention_wait[RETENTION_RINGS];	/* written by one process only */

	/*
	 * How many workers of each kind share the work.  The launcher changes it
	 * while none of the kind runs, and no other number of them ever starts.
	 */
	int			count[WORKER_KINDS];
	WorkerSlot	workers[OUTBOX_WORKERS_PER_DATABASE];	/* publishers first */
} DatabaseSlot;

/* Where the workers of a kind are in DatabaseSlot.workers, and how many fit */
static inline int
outbox_first_worker(WorkerKind kind)
{
	return kind == WORKER_PUBLISHER ? 0 : OUTBOX_MAX_PUBLISHERS;
}

static inline int
outbox_max_workers(WorkerKind kind)
{
	return kind == WORKER_PUBLISHER ? OUTBOX_MAX_PUBLISHERS : OUTBOX_MAX_CONSUMERS;
}

/* Which of n publishers has a lane: the first one what has no order any more */
static inline int
outbox_lane_publisher(int lane, int n)
{
	return lane < 0 || lane >= OUTBOX_LANES ? 0 : lane % n;
}

/*
 * A transaction that may have taken message ids, from before the first of
 * them until its end is visible to others.
 */
typedef struct Announcement
{
	pg_atomic_uint64 clock;		/* 0: none */
	Oid			database;
	TransactionId xid;
	pid_t		pid;
	TimestampTz xact_start;
} Announcement;

typedef struct OutboxShared
{
	LWLock	   *lock;
	pg_atomic_uint64 clock;		/* of the message ids; see message_id.h */
	TimestampTz started_at;
	pg_atomic_uint32 version_warned;	/* hash of librdkafka's version; 0: none */
	PGPROC	   *launcher;		/* whose latch to set, NULL if none */
	bool		launcher_look;	/* look for databases again */
	Oid			probed;			/* the database a probe has looked into */
	WorkerSlot	launcher_slot;
	DatabaseSlot databases[OUTBOX_MAX_DATABASES];
	int			nannouncements;
	Announcement announcements[FLEXIBLE_ARRAY_MEMBER];	/* one a backend */
} OutboxShared;

/* NULL unless the library was preloaded */
extern OutboxShared *outbox_shared;

/*
 * The slot of this session's database, made if there is none yet.  Raises
 * ERROR if the library isn't preloaded or all slots are taken.  Cheap.
 */
extern DatabaseSlot *outbox_my_database(void);

/* The slot of a database, made if there is none; NULL if all are taken */
extern DatabaseSlot *outbox_make_database(Oid database);

/* Raises ERROR with the line to add, unless the library was preloaded */
extern void outbox_require_preloaded(void);

/* The slot of a database, NULL if it has none.  Takes the lock unless held. */
extern DatabaseSlot *outbox_find_database(Oid database);

/* Frees the slot of a database that has the extension no more */
extern void outbox_forget_database(Oid database);

#endif							/* OUTBOX_H */
