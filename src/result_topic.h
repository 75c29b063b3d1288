/*-------------------------------------------------------------------------
 *
 * result_topic.h
 *	  The result topics that the consumer reads.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RESULT_TOPIC_H
#define OUTBOX_RESULT_TOPIC_H

#include "partition.h"
#include "worker.h"

typedef struct ResultTopic
{
	char	   *name;
	const char *trouble;		/* why it isn't read; NULL: nothing known */
	int			failures;		/* in a row */
	TimestampTz ask_at;			/* when to ask what the brokers know of it */
	TimestampTz trouble_logged_at;
	TimestampTz bad_logged_at;	/* when a bad result was last logged */
	int			npartitions;
	Partition **partitions;
} ResultTopic;

/* All of them, by name */
extern ResultTopic **result_topics;
extern int	nresult_topics;

/* Visits every partition of them, by topic and number; begins as {0} */
typedef struct PartitionScan
{
	int			topic;
	int			partition;
} PartitionScan;

/* The next one, NULL after the last */
extern Partition *result_topics_scan(PartitionScan *scan);

/* Takes over what routes_load has read */
extern void result_topics_sync(Bridge *bridge);

/* Reads the rows of partitions that lack them; needs a transaction and SPI */
extern void result_topics_load(void);

/* Everything has to be asked and begun anew: there is another bridge, or none */
extern void result_topics_forget_bridge(void);

/* All partitions begin again from what was saved */
extern void result_topics_unload(Bridge *bridge);

/* Looks soon whether every log is the one it was */
extern void result_topics_verify_soon(void);

/* Does what is due; lowers *wake to when it wants to be called again */
extern void result_topics_serve(Bridge *bridge, TimestampTz now, TimestampTz *wake);

/* The brokers said what they know of a topic */
extern void result_topic_answer(Worker *worker, const BridgeEvent *event);

/* A partition was refused because of its topic */
extern void result_topic_refused(Worker *worker, Partition *partition,
								 const BridgeEvent *event);

/* A partition is being read */
extern void result_topic_proved(Partition *partition);

/* The topic of a partition */
extern ResultTopic *result_topic_of(const Partition *partition);

/* What outbox.worker shows of all this */
extern void result_topics_show(Worker *worker);

#endif							/* OUTBOX_RESULT_TOPIC_H */
