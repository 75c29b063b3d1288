/*-------------------------------------------------------------------------
 *
 * held.c
 *	  Topics whose messages wait: a mark each, not a row a message.
 *
 * Whatever happens to marks, each message that waits has one whose cursor isn't
 * above it: a mark that takes the place of others is as low as the lowest of
 * them, and one that is split off another's messages as low as that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "held_private.h"
#include "key_partition.h"
#include "safe_text.h"

/* A topic of more has no marks by partition */
#define PARTITIONS_MAX	100000

dlist_head	held_marks = DLIST_STATIC_INIT(held_marks);

static HTAB *held_topics = NULL;

static const char *const reasons[] = {
	"paused", "missing", "denied", "misconfigured", "failing"
};

const char *
held_reason(const char *reason)
{
	for (int i = 0; i < lengthof(reasons); i++)
	{
		if (strcmp(reasons[i], reason) == 0)
			return reasons[i];
	}
	elog(ERROR, "unexpected reason \"%s\" in outbox.held", reason);
}

/* ---------------------------------------------------------------------
 * The marks
 * --------------------------------------------------------------------- */

HeldTopic *
held_find_topic(const char *topic)
{
	if (held_topics == NULL || hash_get_num_entries(held_topics) == 0)
		return NULL;
	return hash_search(held_topics, topic, HASH_FIND, NULL);
}

Held *
held_find(const HeldTopic *topic, const char *key, int key_len)
{
	Held	   *held = NULL;

	if (topic->partitions > 0)
		held = topic->by_partition[key_partition(key, key_len, topic->partitions)];
	return held != NULL ? held : topic->whole;
}

Held *
held_find_by_key(const HeldTopic *topic, const char *key)
{
	char	   *utf8;
	Held	   *held;

	if (topic == NULL)
		return NULL;
	utf8 = pg_server_to_any(key, strlen(key), PG_UTF8);
	held = held_find(topic, utf8, strlen(utf8));
	if (utf8 != key)
		pfree(utf8);
	return held;
}

static HeldTopic *
enter_topic(const char *name)
{
	char		key[OUTBOX_TOPIC_LEN + 1];
	HeldTopic  *topic;
	bool		found;

	if (held_topics == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(key);
		ctl.entrysize = sizeof(HeldTopic);
		held_topics = hash_create("outbox held topics", 16, &ctl, HASH_ELEM | HASH_STRINGS);
	}
	strlcpy(key, name, sizeof(key));
	topic = hash_search(held_topics, key, HASH_ENTER, &found);
	if (!found)
	{
		topic->whole = NULL;
		topic->nheld = 0;
		topic->partitions = 0;
		topic->by_partition = NULL;
	}
	return topic;
}

static Held *
make_mark(const HeldTopic *topic, int32 partition)
{
	Held	   *held = MemoryContextAllocZero(TopMemoryContext, sizeof(Held));

	strlcpy(held->topic, topic->topic, sizeof(held->topic));
	held->partition = partition;
	held->partitions = partition < 0 ? -1 : topic->partitions;
	held->state = HELD_WAITING;
	held->reason = held_reason("failing");
	held->cursor = PG_UINT64_MAX;
	held_begin_pass(held);
	dlist_push_tail(&held_marks, &held->node);
	return held;
}

/* Its messages have no mark any more, or another one; the table has it still */
static void
release(HeldTopic *topic, Held *held)
{
	held->released = held->dirty = true;
	if (held->partition < 0)
		topic->whole = NULL;
	else
	{
		topic->by_partition[held->partition] = NULL;
		if (--topic->nheld == 0)
		{
			pfree(topic->by_partition);
			topic->by_partition = NULL;
			topic->partitions = 0;
		}
	}
	if (topic->whole == NULL && topic->nheld == 0)
		hash_search(held_topics, held->topic, HASH_REMOVE, NULL);
}

/* The mark of the whole topic, which takes the place of all its others */
static Held *
enter_whole(HeldTopic *topic, bool *found)
{
	Held	   *whole = topic->whole;

	*found = whole != NULL;
	if (!*found)
		whole = topic->whole = make_mark(topic, -1);
	for (int32 i = 0; i < topic->partitions; i++)
	{
		Held	   *held = topic->by_partition[i];

		if (held == NULL)
			continue;
		whole->cursor = Min(whole->cursor, held->cursor);
		whole->tries = Max(whole->tries, held->tries);
		whole->dirty = true;
		release(topic, held);
	}
	return whole;
}

Held *
held_enter(const char *name, int32 partition, int32 partitions, bool *found)
{
	HeldTopic  *topic = enter_topic(name);

	/* of one partition: then all of the topic is */
	if (partition < 0 || partition >= partitions || partitions < 2 ||
		partitions > PARTITIONS_MAX ||
		(topic->nheld > 0 && topic->partitions != partitions))
		return enter_whole(topic, found);
	if (topic->nheld == 0)
	{
		topic->by_partition = MemoryContextAllocZero(TopMemoryContext,
													 partitions * sizeof(Held *));
		topic->partitions = partitions;
	}
	*found = topic->by_partition[partition] != NULL;
	if (!*found)
	{
		topic->by_partition[partition] = make_mark(topic, partition);
		topic->nheld++;
	}
	return topic->by_partition[partition];
}

void
held_forget(Held *held)
{
	dlist_delete(&held->node);
	pfree(held);
}

void
held_forget_all(void)
{
	dlist_mutable_iter iterator;

	dlist_foreach_modify(iterator, &held_marks)
	{
		Held	   *held = dlist_container(Held, node, iterator.cur);

		if (!held->released)
			release(held_find_topic(held->topic), held);
		held_forget(held);
	}
}

Held *
held_next(HeldIterator *iterator)
{
	dlist_node *head = &held_marks.head;

	if (dlist_is_empty(&held_marks))
		return NULL;
	do
		iterator->last = iterator->last == NULL ? head->next : iterator->last->next;
	while (iterator->last != head &&
		   dlist_container(Held, node, iterator->last)->released);
	return iterator->last == head ? NULL : dlist_container(Held, node, iterator->last);
}

/* ---------------------------------------------------------------------
 * To hold, and to go on
 * --------------------------------------------------------------------- */

static void
log_held(const Held *held)
{
	if (held->partition < 0)
		ereport(LOG,
				(errmsg("topic \"%s\" is held: %s", held->topic, held->error),
				 errdetail("Its messages wait; those of other topics don't.")));
	else
		ereport(LOG,
				(errmsg("partition %d of topic \"%s\" is held: %s",
						held->partition, held->topic, held->error),
				 errdetail("Its messages wait; those of other partitions don't.")));
}

static void
log_released(const Held *held)
{
	if (held->partition < 0)
		ereport(LOG, (errmsg("topic \"%s\" goes on", held->topic)));
	else
		ereport(LOG, (errmsg("partition %d of topic \"%s\" goes on",
							 held->partition, held->topic)));
}

void
held_hold(const char *topic, int32 partition, int32 partitions, MessageClock from,
		  const char *reason, const char *error)
{
	bool		found;
	Held	   *held = held_enter(topic, partition, partitions, &found);
	Held	   *whole = held_find_topic(topic)->whole;

	held->cursor = Min(held->cursor, from);
	if (!found && whole != NULL && whole != held)
	{
		/* what the whole topic's mark has passed by is this one's now */
		held->cursor = Min(held->cursor, whole->cursor);
		if (whole->state == HELD_PROBING)
			whole->found = 0;	/* the probe was of this partition */
	}
	held->reason = held_reason(reason);
	safe_text_copy(held->error, error, sizeof(held->error));
	held->dirty = true;
	held_wait_longer(held);
	if (!found)
		log_held(held);
}

void
held_pass_by(Held *held, MessageClock clock)
{
	held->passed_by = Min(held->passed_by, clock);
	if (clock < held->cursor)
	{
		held->cursor = clock;
		held->dirty = true;
	}
}

void
held_begin_pass(Held *held)
{
	held->upto = held->cursor;
	held->passed_by = PG_UINT64_MAX;
	held->swept = held->met = held->full = false;
	held->found = 0;
}

int
held_begin_sweep(const char *topic, MessageClock *from)
{
	HeldIterator iterator = {0};
	Held	   *held;
	int			n = 0;

	*from = PG_UINT64_MAX;
	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state < HELD_PROBING || strcmp(held->topic, topic) != 0)
			continue;
		held->swept = true;
		*from = Min(*from, held->cursor);
		n++;
	}
	return n;
}

bool
held_sweeps(const Held *held, MessageClock clock)
{
	return held->state >= HELD_PROBING && !held->full && clock >= held->cursor;
}

bool
held_take(Held *held, MessageClock clock)
{
	if (held->state == HELD_PROBING && held->found > 0)
	{
		held->full = true;
		held->upto = clock;
		return false;
	}
	held->found++;
	return true;
}

void
held_put_off(Held *held, MessageClock clock)
{
	held->found--;
	held_pass_by(held, clock);
}

void
held_end_sweep(const char *topic, MessageClock upto, bool met)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state < HELD_PROBING || held->full || strcmp(held->topic, topic) != 0)
			continue;
		held->upto = Max(held->upto, upto);
		held->met = met;
	}
}

/*
 * What a mark's own sweep read went out, or the mark is WAITING again by now.
 * A probe that found nothing to send has nothing to wait for either.
 */
void
held_end_pass(void)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state < HELD_PROBING)
			continue;
		if (held->met && held->passed_by == PG_UINT64_MAX &&
			(held->state == HELD_CATCHING_UP || held->found == 0))
		{
			release(held_find_topic(held->topic), held);
			log_released(held);
			continue;
		}
		if (held->found > 0)
			held->state = HELD_CATCHING_UP;
		held->outdated |= held->cursor != Min(held->upto, held->passed_by);
		held->cursor = Min(held->upto, held->passed_by);
	}
}

int
held_working(void)
{
	HeldIterator iterator = {0};
	Held	   *held;
	int			n = 0;

	while ((held = held_next(&iterator)) != NULL)
		n += held->state >= HELD_PROBING;
	return n;
}
