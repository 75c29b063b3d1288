/*-------------------------------------------------------------------------
 *
 * read_topic.c
 *	  The topics that the consumer reads: result topics and subscribed ones.
 *
 * A topic is asked for, and its partitions are begun when the answer says how
 * many it has.  The bridge asks again by itself and tells of changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "result_route.h"
#include "safe_text.h"
#include "read_topic.h"
#include "subscription.h"

/* An answer that takes longer is asked for again (ms) */
#define ASK_TIMEOUT			30000

/* A topic in trouble is asked for again after so long (ms) */
#define TROUBLE_DELAY_MIN	500
#define TROUBLE_DELAY_MAX	30000

/* A topic that so many answers in a row called missing wasn't there */
#define MISSING_FOR_SURE	3

/* ... and complained of this often (ms) */
#define TROUBLE_LOG_INTERVAL 60000

static ReadTopic **topics = NULL;	/* by name and kind */
int			nread_topics = 0;

/* A topic as the configuration names it */
typedef struct WantedTopic
{
	const char *name;
	ReadKind	kind;
} WantedTopic;

static ReadTopic *find_topic(const char *name, ReadKind kind);
static ReadTopic *make_topic(const WantedTopic *wanted);
static void free_topic(ReadTopic *topic, Bridge *bridge);
static Partition *next_partition(const ReadTopic *topic, int *i);
static void add_partitions(ReadTopic *topic, int npartitions, const Worker *worker);
static void drop_partitions(ReadTopic *topic, int npartitions, Bridge *bridge);
static void ask_later(ReadTopic *topic);
static void in_trouble(Worker *worker, ReadTopic *topic, const char *trouble,
					   const char *text);

/* ---------------------------------------------------------------------
 * Which there are
 * --------------------------------------------------------------------- */

static int
compare_wanted(const void *a, const void *b)
{
	const WantedTopic *left = a;
	const WantedTopic *right = b;
	int			order = strcmp(left->name, right->name);

	return order != 0 ? order : (int) left->kind - (int) right->kind;
}

static int
compare_with_topic(const void *key, const void *element)
{
	const ReadTopic *topic = *(ReadTopic *const *) element;
	WantedTopic other = {topic->name, topic->kind};

	return compare_wanted(key, &other);
}

static ReadTopic *
find_topic(const char *name, ReadKind kind)
{
	WantedTopic key = {name, kind};
	ReadTopic **found = nread_topics == 0 ? NULL :
		bsearch(&key, topics, nread_topics, sizeof(ReadTopic *), compare_with_topic);

	return found ? *found : NULL;
}

ReadTopic *
read_topic_of(const Partition *partition)
{
	return find_topic(partition->row.topic, partition->row.kind);
}

static ReadTopic *
make_topic(const WantedTopic *wanted)
{
	ReadTopic  *topic = MemoryContextAllocZero(TopMemoryContext, sizeof(ReadTopic));

	topic->name = MemoryContextStrdup(TopMemoryContext, wanted->name);
	topic->kind = wanted->kind;
	topic->ask_at = GetCurrentTimestamp();
	return topic;
}

static void
free_topic(ReadTopic *topic, Bridge *bridge)
{
	drop_partitions(topic, 0, bridge);
	if (topic->partitions != NULL)
		pfree(topic->partitions);
	pfree(topic->name);
	pfree(topic);
}

/* What the configuration wants to be read, in the order of "topics" */
static WantedTopic *
wanted_topics(int *n)
{
	const char *const *names;
	Subscription *list;
	int			nnames = routes_result_topics(&names);
	int			nlist = subscriptions(&list);
	WantedTopic *wanted = palloc(Max(nnames + nlist, 1) * sizeof(WantedTopic));

	*n = 0;
	for (int i = 0; i < nnames; i++)
		wanted[(*n)++] = (WantedTopic) {names[i], READ_RESULTS};
	for (int i = 0; i < nlist; i++)
		wanted[(*n)++] = (WantedTopic) {list[i].topic, READ_SUBSCRIPTION};
	qsort(wanted, *n, sizeof(WantedTopic), compare_wanted);
	return wanted;
}

void
read_topics_sync(Bridge *bridge)
{
	int			n;
	WantedTopic *wanted = wanted_topics(&n);
	ReadTopic **old = topics;
	int			nold = nread_topics;
	ReadTopic **synced = MemoryContextAlloc(TopMemoryContext,
											Max(n, 1) * sizeof(ReadTopic *));

	for (int i = 0, next = 0; i < n || next < nold;)
	{
		int			order = i == n ? 1 : next == nold ? -1 :
			compare_with_topic(&wanted[i], &old[next]);

		if (order > 0)
			free_topic(old[next++], bridge);
		else
			synced[i] = order < 0 ? make_topic(&wanted[i]) : old[next++];
		if (order <= 0)
			i++;
	}
	topics = synced;
	nread_topics = n;
	if (old != NULL)
		pfree(old);
	pfree(wanted);
}

void
read_topics_block(Bridge *bridge)
{
	for (int i = 0; i < nread_topics; i++)
	{
		ReadTopic  *topic = topics[i];
		Subscription *subscription = topic->kind == READ_SUBSCRIPTION ?
			subscription_find(topic->name) : NULL;
		bool		blocked = subscription != NULL && subscription->trouble != NULL;
		Partition  *partition;
		int			next;

		if (blocked == topic->blocked)
			continue;
		topic->blocked = blocked;
		next = 0;
		while ((partition = next_partition(topic, &next)) != NULL)
		{
			if (partition->state != PARTITION_UNLOADED)
				partition_unload(partition, bridge);
		}
	}
}

/* Where a partition is another consumer's, there is none */
static void
add_partitions(ReadTopic *topic, int npartitions, const Worker *worker)
{
	if (npartitions > topic->npartitions)
	{
		Size		size = npartitions * sizeof(Partition *);

		topic->partitions = topic->partitions ? repalloc(topic->partitions, size) :
			MemoryContextAlloc(TopMemoryContext, size);
	}
	for (; topic->npartitions < npartitions; topic->npartitions++)
		topic->partitions[topic->npartitions] =
			worker_owns(worker, topic->name, topic->npartitions) ?
			partition_make(topic->name, topic->npartitions, topic->kind) : NULL;
}

/* The topic was made anew with fewer, or isn't read any more: their rows stay */
static void
drop_partitions(ReadTopic *topic, int npartitions, Bridge *bridge)
{
	while (topic->npartitions > npartitions)
	{
		Partition  *partition = topic->partitions[--topic->npartitions];

		if (partition == NULL)
			continue;
		partition_stop(partition, bridge, DT_NOEND);
		partition_free(partition);
	}
}

/* The next of its partitions that this consumer reads, from *i on; NULL after the last */
static Partition *
next_partition(const ReadTopic *topic, int *i)
{
	while (*i < topic->npartitions)
	{
		Partition  *partition = topic->partitions[(*i)++];

		if (partition != NULL)
			return partition;
	}
	return NULL;
}

/* ---------------------------------------------------------------------
 * All of them
 * --------------------------------------------------------------------- */

Partition *
read_topics_scan(PartitionScan *scan)
{
	for (; scan->topic < nread_topics; scan->topic++)
	{
		Partition  *partition = next_partition(topics[scan->topic], &scan->partition);

		if (partition != NULL)
			return partition;
		scan->partition = 0;
	}
	return NULL;
}

/* Where a partition of a subscription begins that was never read */
static StartPosition
start_position(const ReadTopic *topic, int partition)
{
	Subscription *subscription = subscription_find(topic->name);

	if (subscription->assigned < 0)
		subscription_assign(subscription, topic->was_missing ? 0 : topic->npartitions);
	return subscription_start(subscription, partition);
}

void
read_topics_load(void)
{
	for (int i = 0; i < nread_topics; i++)
	{
		ReadTopic  *topic = topics[i];
		Partition  *partition;
		int			next = 0;

		while (!topic->blocked && (partition = next_partition(topic, &next)) != NULL)
		{
			if (partition->state != PARTITION_UNLOADED)
				continue;
			if (topic->kind == READ_SUBSCRIPTION)
				partition->start = start_position(topic, partition->row.partition);
			store_offset_read(&partition->row);
			partition_loaded(partition);
		}
	}
}

void
read_topics_compare(Bridge *bridge)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		OffsetRow	row = partition->row;

		if (partition->state == PARTITION_UNLOADED || !row.exists ||
			row.kind != READ_SUBSCRIPTION)
			continue;
		store_offset_read(&row);
		if (!row.exists || row.state.next != partition->row.state.next ||
			strcmp(row.state.paused, partition->row.state.paused) != 0)
			partition_unload(partition, bridge);
	}
}

void
read_topics_unload(Bridge *bridge)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
		partition_unload(partition, bridge);
}

void
read_topics_forget_bridge(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	for (int i = 0; i < nread_topics; i++)
		topics[i]->ask_at = GetCurrentTimestamp();
	while ((partition = read_topics_scan(&scan)) != NULL)
		partition_stop(partition, NULL, DT_NOEND);
}

void
read_topics_verify_soon(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
		partition_verify_soon(partition);
}

void
read_topics_serve(Bridge *bridge, TimestampTz now, TimestampTz *wake)
{
	for (int i = 0; i < nread_topics; i++)
	{
		ReadTopic  *topic = topics[i];

		if (topic->ask_at <= now)
		{
			topic->ask_at = TimestampTzPlusMilliseconds(now, ASK_TIMEOUT);
			bridge_ask_topic(bridge, topic->name);
		}
		*wake = Min(*wake, topic->ask_at);
	}
	partitions_serve(bridge, now, wake);
}

void
read_topics_show(Worker *worker)
{
	int			partitions = 0;
	int			reading = 0;
	const ReadTopic *waits = NULL;
	char		state[64];

	for (int i = 0; i < nread_topics; i++)
	{
		ReadTopic  *topic = topics[i];
		int			next = 0;

		while (next_partition(topic, &next) != NULL)
			partitions++;
		if (topic->trouble != NULL && waits == NULL)
			waits = topic;
		else if (topic->trouble == NULL && topic->npartitions > 0)
			reading++;
	}
	if (waits != NULL)
		snprintf(state, sizeof(state), "topic \"%.30s\" is %s",
				 waits->name, waits->trouble);
	else if (reading < nread_topics)
		snprintf(state, sizeof(state), "looking for %d topics", nread_topics);
	else
		snprintf(state, sizeof(state), "reading %d partition%s of %d topic%s",
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

static void
topic_answered(Worker *worker, ReadTopic *topic, const BridgeEvent *event)
{
	const char *trouble = trouble_of(event->topic_class);
	Partition  *partition;
	int			next = 0;

	topic->ask_at = DT_NOEND;
	if (event->topic_class == OUTCOME_OK)
	{
		/* of what kind the change was isn't said: look at all of it */
		add_partitions(topic, event->partitions, worker);
		drop_partitions(topic, event->partitions, worker->bridge);
		while ((partition = next_partition(topic, &next)) != NULL)
			partition_verify_soon(partition);
		return;
	}
	ask_later(topic);
	if (trouble == NULL)
		return;
	if (event->topic_class == OUTCOME_TOPIC_MISSING && topic->npartitions == 0 &&
		topic->failures >= MISSING_FOR_SURE)
		topic->was_missing = true;
	in_trouble(worker, topic, trouble, event->text);
	while ((partition = next_partition(topic, &next)) != NULL)
		partition_stop(partition, worker->bridge, DT_NOEND);
}

void
read_topic_answer(Worker *worker, const BridgeEvent *event)
{
	static const ReadKind kinds[] = {READ_RESULTS, READ_SUBSCRIPTION};

	for (int i = 0; i < lengthof(kinds); i++)
	{
		ReadTopic  *topic = find_topic(event->topic, kinds[i]);

		if (topic != NULL)
			topic_answered(worker, topic, event);
	}
}

void
read_topic_refused(Worker *worker, Partition *partition, const BridgeEvent *event)
{
	ReadTopic *topic = read_topic_of(partition);

	in_trouble(worker, topic, event->error_class == PARTITION_TOPIC_DENIED ?
			   "denied" : "missing", event->text);
	ask_later(topic);
	partition_stop(partition, worker->bridge, DT_NOEND);
}

void
read_topic_proved(Partition *partition)
{
	ReadTopic *topic = read_topic_of(partition);

	topic->failures = 0;
	topic->trouble = NULL;
}

static void
ask_later(ReadTopic *topic)
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
in_trouble(Worker *worker, ReadTopic *topic, const char *trouble, const char *text)
{
	TimestampTz now = GetCurrentTimestamp();
	char		error[WORKER_TEXT_LEN];

	topic->trouble = trouble;
	if (topic->trouble_logged_at != 0 &&
		!TimestampDifferenceExceeds(topic->trouble_logged_at, now, TROUBLE_LOG_INTERVAL))
		return;
	topic->trouble_logged_at = now;
	safe_text_printf(error, sizeof(error), "%s \"%s\" is %s: %s",
			 topic->kind == READ_RESULTS ? "result topic" : "subscribed topic",
			 topic->name, trouble, text);
	worker_set_error(worker, error);
	ereport(LOG,
			(errmsg_internal("%s", error),
			 strcmp(trouble, "denied") == 0 ?
			 errhint("Allow READ and DESCRIBE on the topic: kafka-acls --add"
					 " --allow-principal User:... --operation Read"
					 " --operation Describe --topic %s", topic->name) :
			 errdetail("Its records wait; it is looked for again and again.")));
}
