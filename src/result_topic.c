/*-------------------------------------------------------------------------
 *
 * result_topic.c
 *	  The result topics that the consumer reads.
 *
 * A topic is asked for, and its partitions are begun when the answer says how
 * many it has.  The bridge asks again by itself and tells of changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "result_route.h"
#include "result_topic.h"

/* An answer that takes longer is asked for again (ms) */
#define ASK_TIMEOUT			30000

/* A topic in trouble is asked for again after so long (ms) */
#define TROUBLE_DELAY_MIN	500
#define TROUBLE_DELAY_MAX	30000

/* ... and complained of this often (ms) */
#define TROUBLE_LOG_INTERVAL 60000

ResultTopic **result_topics = NULL;
int			nresult_topics = 0;

static ResultTopic *find_topic(const char *name);
static ResultTopic *make_topic(const char *name);
static void free_topic(ResultTopic *topic, Bridge *bridge);
static void set_partitions(ResultTopic *topic, int npartitions, Bridge *bridge);
static void ask_later(ResultTopic *topic);
static void in_trouble(Worker *worker, ResultTopic *topic, const char *trouble,
					   const char *text);

/* ---------------------------------------------------------------------
 * Which there are
 * --------------------------------------------------------------------- */

static int
compare_topics(const void *a, const void *b)
{
	return strcmp((*(ResultTopic *const *) a)->name, (*(ResultTopic *const *) b)->name);
}

static ResultTopic *
find_topic(const char *name)
{
	ResultTopic key = {.name = unconstify(char *, name)};
	ResultTopic *pointer = &key;
	ResultTopic **found = nresult_topics == 0 ? NULL :
		bsearch(&pointer, result_topics, nresult_topics, sizeof(ResultTopic *),
				compare_topics);

	return found ? *found : NULL;
}

ResultTopic *
result_topic_of(const Partition *partition)
{
	return find_topic(partition->row.topic);
}

static ResultTopic *
make_topic(const char *name)
{
	ResultTopic *topic = MemoryContextAllocZero(TopMemoryContext, sizeof(ResultTopic));

	topic->name = MemoryContextStrdup(TopMemoryContext, name);
	topic->ask_at = GetCurrentTimestamp();
	return topic;
}

static void
free_topic(ResultTopic *topic, Bridge *bridge)
{
	set_partitions(topic, 0, bridge);
	if (topic->partitions != NULL)
		pfree(topic->partitions);
	pfree(topic->name);
	pfree(topic);
}

void
result_topics_sync(Bridge *bridge)
{
	const char *const *names;
	int			n = routes_result_topics(&names);
	ResultTopic **old = result_topics;
	int			nold = nresult_topics;
	ResultTopic **wanted = MemoryContextAlloc(TopMemoryContext,
											  Max(n, 1) * sizeof(ResultTopic *));

	/* both are in the order of names */
	for (int i = 0, next = 0; i < n || next < nold;)
	{
		int			order = i == n ? 1 : next == nold ? -1 :
			strcmp(names[i], old[next]->name);

		if (order > 0)
			free_topic(old[next++], bridge);
		else
			wanted[i] = order < 0 ? make_topic(names[i]) : old[next++];
		if (order <= 0)
			i++;
	}
	result_topics = wanted;
	nresult_topics = n;
	if (old != NULL)
		pfree(old);
}

/* More of them, or fewer if the topic was made anew; those that go keep their row */
static void
set_partitions(ResultTopic *topic, int npartitions, Bridge *bridge)
{
	if (npartitions > topic->npartitions)
	{
		Size		size = npartitions * sizeof(Partition *);

		topic->partitions = topic->partitions ? repalloc(topic->partitions, size) :
			MemoryContextAlloc(TopMemoryContext, size);
	}
	while (topic->npartitions < npartitions)
	{
		topic->partitions[topic->npartitions] = partition_make(topic->name,
															   topic->npartitions);
		topic->npartitions++;
	}
	while (topic->npartitions > npartitions)
	{
		Partition  *partition = topic->partitions[--topic->npartitions];

		partition_stop(partition, bridge, DT_NOEND);
		partition_free(partition);
	}
}

/* ---------------------------------------------------------------------
 * All of them
 * --------------------------------------------------------------------- */

Partition *
result_topics_scan(PartitionScan *scan)
{
	for (; scan->topic < nresult_topics; scan->topic++)
	{
		ResultTopic *topic = result_topics[scan->topic];

		if (scan->partition < topic->npartitions)
			return topic->partitions[scan->partition++];
		scan->partition = 0;
	}
	return NULL;
}

void
result_topics_load(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
	{
		if (partition->state != PARTITION_UNLOADED)
			continue;
		store_offset_read(&partition->row);
		partition_loaded(partition);
	}
}

void
result_topics_unload(Bridge *bridge)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
		partition_unload(partition, bridge);
}

void
result_topics_forget_bridge(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	for (int i = 0; i < nresult_topics; i++)
		result_topics[i]->ask_at = GetCurrentTimestamp();
	while ((partition = result_topics_scan(&scan)) != NULL)
		partition_stop(partition, NULL, DT_NOEND);
}

void
result_topics_verify_soon(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = result_topics_scan(&scan)) != NULL)
		partition_verify_soon(partition);
}

void
result_topics_serve(Bridge *bridge, TimestampTz now, TimestampTz *wake)
{
	for (int i = 0; i < nresult_topics; i++)
	{
		ResultTopic *topic = result_topics[i];

		if (topic->ask_at <= now)
		{
			topic->ask_at = TimestampTzPlusMilliseconds(now, ASK_TIMEOUT);
			bridge_ask_topic(bridge, topic->name);
		}
		*wake = Min(*wake, topic->ask_at);
		for (int j = 0; j < topic->npartitions; j++)
			partition_serve(topic->partitions[j], bridge, now, wake);
	}
}

void
result_topics_show(Worker *worker)
{
	int			partitions = 0;
	int			reading = 0;
	const ResultTopic *waits = NULL;
	char		state[64];

	for (int i = 0; i < nresult_topics; i++)
	{
		ResultTopic *topic = result_topics[i];

		partitions += topic->npartitions;
		if (topic->trouble != NULL && waits == NULL)
			waits = topic;
		else if (topic->trouble == NULL && topic->npartitions > 0)
			reading++;
	}
	if (waits != NULL)
		snprintf(state, sizeof(state), "result topic \"%.30s\" is %s",
				 waits->name, waits->trouble);
	else if (reading < nresult_topics)
		snprintf(state, sizeof(state), "looking for %d result topics", nresult_topics);
	else
		snprintf(state, sizeof(state), "reading %d partition%s of %d result topic%s",
				 partitions, partitions == 1 ? "" : "s", reading, reading == 1 ? "" : "s");
	worker_set_state(worker, state);
}

/* ---------------------------------------------------------------------
 * One of them
 * --------------------------------------------------------------------- */

/* What the brokers say of a topic that can't be read; NULL if it passes */
static const char *
trouble_of(OutcomeClass class)
{
	switch (class)
	{
		case OUTCOME_TOPIC_MISSING:
			return "missing";
		case OUTCOME_TOPIC_DENIED:
			return "denied";
		case OUTCOME_TOPIC_MISCONFIGURED:
			return "misconfigured";
		default:
			return NULL;
	}
}

void
result_topic_answer(Worker *worker, const BridgeEvent *event)
{
	ResultTopic *topic = find_topic(event->topic);
	const char *trouble = trouble_of(event->topic_class);

	if (topic == NULL)
		return;
	topic->ask_at = DT_NOEND;
	if (event->topic_class == OUTCOME_OK)
	{
		/* of what kind the change was isn't said: look at all of it */
		set_partitions(topic, event->partitions, worker->bridge);
		for (int i = 0; i < topic->npartitions; i++)
			partition_verify_soon(topic->partitions[i]);
		return;
	}
	ask_later(topic);
	if (trouble == NULL)
		return;
	in_trouble(worker, topic, trouble, event->text);
	for (int i = 0; i < topic->npartitions; i++)
		partition_stop(topic->partitions[i], worker->bridge, DT_NOEND);
}

void
result_topic_refused(Worker *worker, Partition *partition, const BridgeEvent *event)
{
	ResultTopic *topic = result_topic_of(partition);

	in_trouble(worker, topic, event->error_class == PARTITION_TOPIC_DENIED ?
			   "denied" : "missing", event->text);
	ask_later(topic);
	partition_stop(partition, worker->bridge, DT_NOEND);
}

void
result_topic_proved(Partition *partition)
{
	ResultTopic *topic = result_topic_of(partition);

	topic->failures = 0;
	topic->trouble = NULL;
}

static void
ask_later(ResultTopic *topic)
{
	/* one failure, however many partitions tell of it */
	if (topic->ask_at != DT_NOEND)
		return;
	topic->ask_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												backoff_delay(++topic->failures,
															  TROUBLE_DELAY_MIN,
															  TROUBLE_DELAY_MAX));
}

/* Makes it visible that a topic isn't read */
static void
in_trouble(Worker *worker, ResultTopic *topic, const char *trouble, const char *text)
{
	TimestampTz now = GetCurrentTimestamp();
	char		error[WORKER_TEXT_LEN];

	topic->trouble = trouble;
	if (topic->trouble_logged_at != 0 &&
		!TimestampDifferenceExceeds(topic->trouble_logged_at, now, TROUBLE_LOG_INTERVAL))
		return;
	topic->trouble_logged_at = now;
	snprintf(error, sizeof(error), "result topic \"%s\" is %s: %s",
			 topic->name, trouble, text);
	worker_set_error(worker, error);
	ereport(LOG,
			(errmsg_internal("%s", error),
			 strcmp(trouble, "denied") == 0 ?
			 errhint("Allow READ and DESCRIBE on the topic: kafka-acls --add"
					 " --allow-principal User:... --operation Read"
					 " --operation Describe --topic %s", topic->name) :
			 errdetail("Its results wait; it is looked for again and again.")));
}
