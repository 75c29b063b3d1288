/*-------------------------------------------------------------------------
 *
 * held_try.c
 *	  When a topic that is held is tried again: the question that goes to the
 *	  brokers first, and what they answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "held_private.h"
#include "safe_text.h"
#include "worker.h"

/* How long to wait before a held topic is asked for again */
#define HELD_DELAY_MIN	500
#define HELD_DELAY_MAX	30000

/* A question without an answer is asked again after this long */
#define ANSWER_TIMEOUT	15000

void
held_wait_longer(Held *held)
{
	held->state = HELD_WAITING;
	held->tries++;
	held->failed_at = GetCurrentTimestamp();
	held->next_try = TimestampTzPlusMilliseconds(held->failed_at,
												 backoff_delay(held->tries, HELD_DELAY_MIN,
															   HELD_DELAY_MAX));
	held->outdated = true;
}

/* ---------------------------------------------------------------------
 * Questions
 * --------------------------------------------------------------------- */

/* Does it wait for its time, or for an answer that may not come? */
static bool
is_pending(const Held *held)
{
	return held->state <= HELD_ASKED && !held->paused;
}

static bool
is_due(const Held *held, TimestampTz now)
{
	return is_pending(held) && held->next_try <= now;
}

/*
 * One question is for all of a topic.  Marks that have waited for half of their
 * time go with one that is due, which keeps those that failed together so.
 */
static bool
is_due_soon(const Held *held, TimestampTz now)
{
	return is_due(held, now) ||
		(held->state == HELD_WAITING && is_pending(held) &&
		 now - held->failed_at >= held->next_try - now);
}

const char *
held_next_question(TimestampTz now)
{
	HeldIterator iterator = {0};
	HeldIterator others = {0};
	Held	   *due;
	Held	   *held;

	while ((due = held_next(&iterator)) != NULL && !is_due(due, now))
		;
	if (due == NULL)
		return NULL;
	while ((held = held_next(&others)) != NULL)
	{
		if (is_due_soon(held, now) && strcmp(held->topic, due->topic) == 0)
		{
			held->state = HELD_ASKED;
			held->next_try = TimestampTzPlusMilliseconds(now, ANSWER_TIMEOUT);
		}
	}
	return due->topic;
}

TimestampTz
held_next_try(void)
{
	HeldIterator iterator = {0};
	TimestampTz first = DT_NOEND;
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (is_pending(held))
			first = Min(first, held->next_try);
	}
	return first;
}

/* Those of a topic, or all (NULL) */
static void
try_now(const char *topic)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (is_pending(held) && (topic == NULL || strcmp(held->topic, topic) == 0))
		{
			held->state = HELD_WAITING;
			held->next_try = 0;
		}
	}
}

void
held_try_now(const char *topic)
{
	if (held_find_topic(topic) != NULL)
		try_now(topic);
}

void
held_try_all_now(void)
{
	try_now(NULL);
}

void
held_forget_questions(void)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state == HELD_ASKED)
			held->state = HELD_WAITING;
	}
}

/* ---------------------------------------------------------------------
 * Answers
 * --------------------------------------------------------------------- */

static void
failed_again(Held *held, const char *reason, const char *error)
{
	held->reason = held_reason(reason);
	safe_text_copy(held->error, error, sizeof(held->error));
	held_wait_longer(held);
}

/* The keys lead elsewhere now: the topic goes on as a whole, after a question */
static void
partitions_changed(const HeldTopic *topic, int32 partitions)
{
	bool		found;
	int32		before = topic->partitions;
	Held	   *whole = held_enter(topic->topic, -1, -1, &found);

	safe_text_printf(whole->error, sizeof(whole->error),
					 "it has %d partitions instead of %d", partitions, before);
	whole->state = HELD_WAITING;
	whole->next_try = 0;
	ereport(LOG,
			(errmsg("topic \"%s\" is held: %s", whole->topic, whole->error),
			 errdetail("Some of its partitions were held, and keys may lead to others now."
					   "  It goes on from the first message that waits.")));
}

/* Has the partition a leader, or any partition of the topic (-1)? */
static bool
has_leader(const BridgeEvent *event, int32 partition)
{
	if (partition < 0)
		return event->leaderless == 0 || event->leaderless < event->partitions;
	for (int32 i = 0; i < event->leaderless; i++)
	{
		if (event->leaderless_partitions[i] == partition)
			return false;
	}
	return true;
}

/* The reason, if it is one for all of the topic; else NULL */
static const char *
topic_reason(OutcomeClass class)
{
	switch (class)
	{
		case OUTCOME_TOPIC_DENIED:
			return "denied";
		case OUTCOME_TOPIC_MISSING:
			return "missing";
		case OUTCOME_TOPIC_MISCONFIGURED:
			return "misconfigured";
		default:
			return NULL;
	}
}

static void
answer_one(Held *held, const BridgeEvent *event, const char *error)
{
	if (event->topic_class != OUTCOME_OK)
		failed_again(held, "failing", error);
	else if (has_leader(event, held->partition))
		held->state = HELD_PROBING;
	else if (held->partition < 0)
		failed_again(held, "failing", "LEADER_NOT_AVAILABLE: no partition has a leader");
	else
		failed_again(held, "failing", "LEADER_NOT_AVAILABLE: the partition has no leader");
}

void
held_answer(const BridgeEvent *event)
{
	HeldTopic  *topic = held_find_topic(event->topic);
	const char *reason = topic_reason(event->topic_class);
	char		error[WORKER_TEXT_LEN];
	HeldIterator iterator = {0};
	Held	   *held;
	bool		found;

	if (topic == NULL)
		return;
	if (event->topic_class == OUTCOME_OK && topic->nheld > 0 &&
		topic->partitions != event->partitions)
	{
		partitions_changed(topic, event->partitions);
		return;
	}
	safe_text_printf(error, sizeof(error), "%s: %s", event->error, event->text);
	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state != HELD_ASKED || strcmp(held->topic, event->topic) != 0)
			continue;
		if (reason == NULL)
			answer_one(held, event, error);
		else
			failed_again(held_enter(held->topic, -1, -1, &found), reason, error);
	}
}
