/*-------------------------------------------------------------------------
 *
 * bridge.h
 *	  The worker's end of the bridge, the child process that speaks Kafka.
 *
 * Everything here is called from a publisher or consumer process only.  No
 * function blocks, none needs a transaction, and none raises an ERROR but
 * for lack of memory and where its comment says so.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BRIDGE_H
#define OUTBOX_BRIDGE_H

#include "bridge/protocol.h"
#include "kafka_config.h"

typedef struct BridgeHeader
{
	const char *name;			/* UTF-8, terminated by a zero byte */
	const char *value;			/* NULL for a null header */
	int			len;
} BridgeHeader;

/* A record on its way out (produce) or in (consume) */
typedef struct BridgeRecord
{
	const char *topic;
	const char *key;			/* NULL for none; need not be terminated */
	int			key_len;
	const char *value;			/* NULL for a tombstone */
	int			value_len;
	int			nheaders;
	BridgeHeader *headers;
	/* incoming records only */
	int32		partition;
	int64		offset;
	int64		end;			/* of its log, -1 if unknown */
	int64		timestamp;		/* milliseconds since 1970, -1 if unknown */
} BridgeRecord;

typedef struct BridgeOutcome
{
	uint32		index;			/* as given to bridge_produce */
	OutcomeClass class;
	OutcomePersisted persisted;
	int32		partition;		/* -1 if unknown */
	int32		partitions;		/* of the topic, -1 if unknown */
	int64		offset;			/* -1 if unknown */
	const char *error;			/* librdkafka's name of the error, "" if OK */
	const char *detail;			/* human-readable text, "" if OK */
} BridgeOutcome;

typedef enum BridgeEventType
{
	BRIDGE_READY,				/* the bridge answered the HELLO */
	BRIDGE_OUTCOMES,			/* outcomes, noutcomes */
	BRIDGE_BROKERS,				/* up, text (the reason when down) */
	BRIDGE_TOPIC,				/* topic, class, error, text, partitions, ... */
	BRIDGE_RECORD,				/* tag, record (consumer) */
	BRIDGE_CAUGHT_UP,			/* tag, offset: end of the partition reached */
	BRIDGE_PARTITION_ERROR,		/* tag, error_class, error, text, offset */
	BRIDGE_WATERMARKS,			/* tag, low, high, at_time: answer to bridge_watch */
	BRIDGE_ADMIN_DONE,			/* request, error ("" = created), text */
	BRIDGE_LOG,					/* level (syslog 0..7), text */
	BRIDGE_DIED					/* crashed, text: how; no event follows this one */
} BridgeEventType;

/* All pointers are valid until the next call on the same bridge */
typedef struct BridgeEvent
{
	BridgeEventType type;
	int			noutcomes;
	BridgeOutcome *outcomes;
	bool		up;
	bool		crashed;		/* it ended by itself, not by us or a signal from outside */
	const char *topic;
	OutcomeClass topic_class;	/* OUTCOME_OK if the topic is usable */
	int32		partitions;		/* -1 unknown */
	int32		leaderless;		/* how many partitions have no leader: */
	const int32 *leaderless_partitions; /* these, ascending */
	int32		replication_factor; /* -1 unknown */
	int32		min_insync_replicas;	/* -1 unknown */
	uint32		tag;
	BridgeRecord record;
	PartitionErrorClass error_class;
	int64		offset;
	int64		low;
	int64		high;
	int64		at_time;		/* -1 if not asked */
	uint64		request;
	int			level;
	const char *error;
	const char *text;
} BridgeEvent;

typedef struct Bridge Bridge;

/*
 * Starts the bridge program as a child of this process and queues HELLO with
 * the properties; they are cleared from memory once sent.  Raises ERROR
 * (external routine exception) if the program can't be started.
 */
extern Bridge *bridge_start(BridgeRole role, const KafkaProperty *properties,
							int nproperties);

/*
 * Ends the bridge at once (SIGKILL), reaps it and frees everything.  Safe on
 * NULL, after BRIDGE_DIED, and from a before_shmem_exit callback.
 */
extern void bridge_stop(Bridge *bridge);

extern pid_t bridge_pid(const Bridge *bridge);
extern pgsocket bridge_socket(const Bridge *bridge);

/* Version of librdkafka as it said in READY, "" before that */
extern const char *bridge_librdkafka_version(const Bridge *bridge);

/* What it said in READY is known to be wrong with that, "" if nothing */
extern const char *bridge_librdkafka_faults(const Bridge *bridge);

/* True while there is output that the socket didn't take yet */
extern bool bridge_wants_write(const Bridge *bridge);

/*
 * Writes what the socket takes and reads what it holds, without blocking.
 * Call it when the socket is readable or writable, or at any time.
 */
extern void bridge_pump(Bridge *bridge);

/*
 * True if something was read that bridge_next_event hasn't looked at: the
 * socket won't say so again, so don't sleep on it.
 */
extern bool bridge_has_input(const Bridge *bridge);

/* Takes the next event off the input; false if there is none yet. */
extern bool bridge_next_event(Bridge *bridge, BridgeEvent *event);

/*
 * Sends a PING when nothing came for too long, and turns to BRIDGE_DIED (after
 * SIGKILL) when it wasn't answered for 5 s.  busy: the worker waits for
 * outcomes, so that a second is too long, else ten are.  Returns in how many
 * milliseconds it wants to be called again.
 */
extern long bridge_watchdog(Bridge *bridge, bool busy);

/*---- producer ----*/

/*
 * Queues a record under an index of the caller's choice, which must not be in
 * use.  Everything is copied.  The order of calls is the order of production.
 */
extern void bridge_produce(Bridge *bridge, uint32 index, const BridgeRecord *record);

/* Everything queued so far goes out now; call it after a batch's last record */
extern void bridge_flush(Bridge *bridge);

/* Gives up on all records without an outcome; their outcomes follow */
extern void bridge_purge(Bridge *bridge);

/* Asks for a BRIDGE_TOPIC event with fresh metadata (either role) */
extern void bridge_ask_topic(Bridge *bridge, const char *topic);

/*
 * Creates a topic; BRIDGE_ADMIN_DONE with the same request number follows.
 * partitions and replication_factor -1: the broker's default.
 */
extern void bridge_create_topic(Bridge *bridge, uint64 request, const char *topic,
								int32 partitions, int32 replication_factor,
								const KafkaProperty *config, int nconfig);

/*---- consumer ----*/

/*
 * Sends what the next three have gathered, without blocking; bridge_pump does
 * so too.  Call it before anything that takes long.
 */
extern void bridge_push(Bridge *bridge);

/*
 * Queries the low and high watermark: BRIDGE_WATERMARKS or _PARTITION_ERROR.
 * time: also the offset of the first record at or after it, in milliseconds
 * since 1970; -1 if that isn't wanted.  Where there is none, it is the high
 * watermark, and what comes later comes after it.
 */
extern void bridge_watch(Bridge *bridge, uint32 tag, const char *topic,
						 int32 partition, int64 time);

/*
 * Reads a partition from an offset on.  The tag comes back in every event
 * about it, so that what a stopped reading had still under way is told apart.
 * first_only: it ends by itself with the first record.
 */
extern void bridge_consume(Bridge *bridge, uint32 tag, const char *topic,
						   int32 partition, int64 offset, bool first_only);

/* Stops the reading with that tag; unknown tags are ignored */
extern void bridge_unconsume(Bridge *bridge, uint32 tag);

#endif							/* OUTBOX_BRIDGE_H */
