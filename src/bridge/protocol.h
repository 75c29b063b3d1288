/*-------------------------------------------------------------------------
 *
 * protocol.h
 *	  What a worker and its bridge say to each other: the types of frames.
 *
 * The bodies are written with the types of frame.h; "..." stands for a
 * grouped frame, whose items follow each other until it ends.  Change
 * BRIDGE_PROTOCOL whenever a body changes.  HELLO, WELCOME and FATAL must
 * keep their numbers, and what they say up to the build: that is how ends of
 * different versions tell each other so.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PROTOCOL_H
#define OUTBOX_PROTOCOL_H

#define BRIDGE_PROTOCOL		5

/* Both ends are compiled with the same one; they refuse any other */
#ifndef OUTBOX_BUILD
#define OUTBOX_BUILD		"unknown"
#endif

/* The bridge's end of the socket pair, its only descriptor beside 0 to 2 */
#define BRIDGE_FD			3

/* A bridge never keeps silent for longer */
#define SIGN_OF_LIFE_MS		9000

typedef enum FrameType
{
	/*
	 * Worker to bridge
	 *
	 * HELLO: u32 protocol, string build, u8 role ('p' or 'c'), then for each
	 * property string name, string value.  The first frame, and only that.
	 *
	 * PING: u32 number; answered by PONG at once, whatever else goes on.
	 *
	 * PRODUCE ...: u32 index, string topic, blob key, blob value, u32 number
	 * of headers, and for each string name, blob value.
	 *
	 * OVERSIZE: u32 index.  A record that fits in no frame; the answer is an
	 * outcome like any other's.
	 *
	 * FLUSH: the last record of a batch went before.  Within a batch no record
	 * is sent to a partition where an earlier one failed, since that would
	 * turn their order around.
	 *
	 * PURGE: gives up on every record without an outcome.
	 *
	 * ASK_TOPIC: string topic; answered by TOPIC.
	 *
	 * CREATE_TOPIC: u64 request, string topic, u32 partitions, u32
	 * replication factor (-1: the broker's default), then for each setting
	 * string name, string value.
	 *
	 * WATCH: u32 tag, string topic, u32 partition, u64 time (milliseconds since
	 * 1970; -1: not asked).
	 *
	 * CONSUME: u32 tag, string topic, u32 partition, u64 offset, u8 whether
	 * the reading ends with the first record.
	 *
	 * UNCONSUME: u32 tag.
	 */
	FRAME_HELLO = 1,
	FRAME_PING,
	FRAME_PRODUCE,
	FRAME_OVERSIZE,
	FRAME_FLUSH,
	FRAME_PURGE,
	FRAME_ASK_TOPIC,
	FRAME_CREATE_TOPIC,
	FRAME_WATCH,
	FRAME_CONSUME,
	FRAME_UNCONSUME,

	/*
	 * Bridge to worker
	 *
	 * WELCOME: u32 protocol, string build, string version of librdkafka,
	 * string what is known to be wrong with that ("" if nothing).  Answers HELLO.
	 *
	 * FATAL: string text.  The bridge ends after it, with status 1.
	 *
	 * PONG: u32 number of the PING; 0 unasked, as a sign of life while the
	 * bridge reads no frames because it holds too many records, or when it had
	 * nothing else to say for SIGN_OF_LIFE_MS.
	 *
	 * OUTCOMES ...: u32 index, u8 class, u8 persisted, u32 partition, u32
	 * partitions that the topic has (-1: unknown), u64 offset, string error,
	 * string detail.
	 *
	 * BROKERS: u8 up, string reason when down.
	 *
	 * TOPIC: string topic, u8 class, string error, string text, u32
	 * partitions, u32 leaderless, u32 replication factor, u32
	 * min.insync.replicas (-1: unknown), and for each of the leaderless
	 * partitions its u32 number, ascending.
	 *
	 * RECORDS ...: u32 tag, string topic, u32 partition, u64 offset, u64 end of
	 * the log as the last fetch saw it (-1: unknown), u64 timestamp, blob key, blob value, u32 number of headers, and for each
	 * string name, blob value.
	 *
	 * CAUGHT_UP: u32 tag, u64 offset of the next record to come.  Not said
	 * where that is the one behind the last record passed on.
	 *
	 * PARTITION_ERROR: u32 tag, u8 class, u64 offset (-1: none), string
	 * error, string text.
	 *
	 * WATERMARKS: u32 tag, u64 low, u64 high, u64 offset of the first record at
	 * or after the time asked for (high if there is none, -1 if not asked).
	 *
	 * ADMIN_DONE: u64 request, string error ("": done), string text.
	 *
	 * LOG: u8 level as in syslog, string text.
	 */
	FRAME_WELCOME = 65,
	FRAME_FATAL,
	FRAME_PONG,
	FRAME_OUTCOMES,
	FRAME_BROKERS,
	FRAME_TOPIC,
	FRAME_RECORDS,
	FRAME_CAUGHT_UP,
	FRAME_PARTITION_ERROR,
	FRAME_WATERMARKS,
	FRAME_ADMIN_DONE,
	FRAME_LOG
} FrameType;

/*---- what the bodies speak of ----*/

typedef enum BridgeRole
{
	BRIDGE_PRODUCER = 'p',
	BRIDGE_CONSUMER = 'c'
} BridgeRole;

/* What became of a record handed to the bridge; see doc/kafka-errors.md */
typedef enum OutcomeClass
{
	OUTCOME_OK,					/* acknowledged by all in-sync replicas */
	OUTCOME_RETRIABLE,			/* not or possibly sent: try again later */
	OUTCOME_REJECTED,			/* this record can never be published */
	OUTCOME_REQUEST_REJECTED,	/* its whole request was: try it alone */
	OUTCOME_CORRUPT,			/* broker saw a bad checksum: alone, again */
	OUTCOME_TOPIC_MISSING,
	OUTCOME_TOPIC_DENIED,
	OUTCOME_TOPIC_MISCONFIGURED,
	OUTCOME_CLIENT_FINISHED,	/* the producer is unusable: a new bridge */
	OUTCOME_BEHIND,				/* kept back, lest it overtakes one that failed */
	OUTCOME_UNKNOWN				/* any other error: try again later */
} OutcomeClass;

typedef enum OutcomePersisted
{
	PERSISTED_NOT,
	PERSISTED_POSSIBLY,
	PERSISTED_YES
} OutcomePersisted;

typedef enum PartitionErrorClass
{
	PARTITION_RETRYING,			/* internal or passing: nothing to do */
	PARTITION_OFFSET_LOST,		/* the position is outside of the log */
	PARTITION_TOPIC_MISSING,
	PARTITION_TOPIC_DENIED,
	PARTITION_UNREADABLE,		/* the record at offset can't be read */
	PARTITION_CLIENT_FINISHED
} PartitionErrorClass;

#endif							/* OUTBOX_PROTOCOL_H */
