/*-------------------------------------------------------------------------
 *
 * read_topic.h
 *	  The topics that the consumer reads: result topics and subscribed ones.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_READ_TOPIC_H
#define OUTBOX_READ_TOPIC_H

#include "partition.h"
#include "worker.h"

typedef struct ReadTopic
{
	char	   *name;
	ReadKind	kind;
	const char *trouble;		/* why it isn't read; NULL: nothing known */
	bool		was_missing;	/* and never read: all that comes is new */
	bool		blocked;		/* a subscription that can't be handled now */
	int			failures;		/* in a row */
	TimestampTz ask_at;			/* when to ask what the brokers know of it */
	TimestampTz trouble_logged_at;
	TimestampTz bad_logged_at;	/* when a bad result was last logged */
	int			npartitions;
	Partition **partitions;		/* NULL: read by another consumer */
} ReadTopic;

/* How many there are */
extern int	nread_topics;

/* Visits every partition of them, by topic and number; begins as {0} */
typedef struct PartitionScan
{
	int			topic;
	int			partition;
} PartitionScan;

/* The next one, NULL after the last */
extern Partition *read_topics_scan(PartitionScan *scan);

/* Takes over what routes_load and subscriptions_load have read */
extern void read_topics_sync(Bridge *bridge);

/* Stops what can't be handled any more, lets go on what can be again */
extern void read_topics_block(Bridge *bridge);

/* Reads the rows of partitions that lack them; needs a transaction and SPI */
extern void read_topics_load(void);

/* The rows may have been changed by people: those that were are read again */
extern void read_topics_compare(Bridge *bridge);

/* Everything has to be asked and begun anew: there is another bridge, or none */
extern void read_topics_forget_bridge(void);

/* All partitions begin again from what was saved */
extern void read_topics_unload(Bridge *bridge);

/* Looks soon whether every log is the one it was */
extern void read_topics_verify_soon(void);

/* Does what is due; lowers *wake to when it wants to be called again */
extern void read_topics_serve(Bridge *bridge, TimestampTz now, TimestampTz *wake);

/* The brokers said what they know of a topic */
extern void read_topic_answer(Worker *worker, const BridgeEvent *event);

/* A partition was refused because of its topic */
extern void read_topic_refused(Worker *worker, Partition *partition,
							   const BridgeEvent *event);

/* A partition is being read */
extern void read_topic_proved(Partition *partition);

/* The topic of a partition */
extern ReadTopic *read_topic_of(const Partition *partition);

/* What outbox.worker shows of all this */
extern void read_topics_show(Worker *worker);

#endif							/* OUTBOX_READ_TOPIC_H */
