/*-------------------------------------------------------------------------
 *
 * held.c
 *	  Topics whose messages wait: a mark each, not a row a message.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "held.h"
#include "safe_text.h"
#include "store.h"
#include "worker.h"

/* How long to wait before a held topic is asked for again */
#define HELD_DELAY_MIN	500
#define HELD_DELAY_MAX	30000

/* A question without an answer is asked again after this long */
#define ANSWER_TIMEOUT	15000

static HTAB *held_topics = NULL;

/* Whose marks they are: of which publisher, of how many */
static int	publisher = 0;
static int	publishers = 1;

static const char *const reasons[] = {
	"paused", "missing", "denied", "misconfigured", "failing"
};

static const char *
reason_constant(const char *reason)
{
	for (int i = 0; i < lengthof(reasons); i++)
	{
		if (strcmp(reasons[i], reason) == 0)
			return reasons[i];
	}
	elog(ERROR, "unexpected reason \"%s\" in outbox.held", reason);
}

static Held *
held_enter(const char *topic, bool *found)
{
	char		key[OUTBOX_TOPIC_LEN + 1];

	if (held_topics == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(key);
		ctl.entrysize = sizeof(Held);
		held_topics = hash_create("outbox held topics", 16, &ctl, HASH_ELEM | HASH_STRINGS);
	}
	strlcpy(key, topic, sizeof(key));
	return hash_search(held_topics, key, HASH_ENTER, found);
}

Held *
held_find(const char *topic)
{
	if (held_topics == NULL || hash_get_num_entries(held_topics) == 0)
		return NULL;
	return hash_search(held_topics, topic, HASH_FIND, NULL);
}

/*
 * The publishers were of another number when the marks were saved: each of the
 * new ones gets a copy that is right for any lane.  Whoever comes first does it
 * for all, under the lock of a row that every publisher has.
 */
static void
share_out_anew(void)
{
	static const Oid types[] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(publishers)};

	store_execute("SELECT FROM outbox.lane WHERE lane = " CppAsString2(OUTBOX_LANE_LATE)
				  " FOR UPDATE", 0, NULL, NULL, NULL);
	store_execute("WITH old AS (DELETE FROM outbox.held WHERE publishers <> $1 RETURNING *)"
				  " INSERT INTO outbox.held (topic, partition, publisher, publishers,"
				  "  cursor, reason, error, tries, since)"
				  " SELECT topic, partition, i, $1,"
				  "  (pg_catalog.array_agg(cursor ORDER BY cursor))[1],"
				  "  pg_catalog.min(reason), pg_catalog.min(error), pg_catalog.max(tries),"
				  "  pg_catalog.min(since)"
				  " FROM old, pg_catalog.generate_series(0, $1 - 1) AS i"
				  " GROUP BY topic, partition, i", 1, types, values, NULL);
}

void
held_load(int number, int count)
{
	static const Oid types[] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(number)};
	uint64		rows;

	publisher = number;
	publishers = count;
	share_out_anew();
	rows = store_execute("SELECT topic, cursor, reason, error, tries"
						 " FROM outbox.held WHERE partition = -1 AND publisher = $1",
						 1, types, values, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *error = SPI_getvalue(tuple, desc, 4);
		bool		found;
		bool		isnull;
		Held	   *held = held_enter(SPI_getvalue(tuple, desc, 1), &found);

		held->state = HELD_WAITING;
		held->cursor = message_id_clock(DatumGetUUIDP(SPI_getbinval(tuple, desc, 2, &isnull)));
		held->reason = reason_constant(SPI_getvalue(tuple, desc, 3));
		safe_text_copy(held->error, error ? error : "", sizeof(held->error));
		held->tries = DatumGetInt32(SPI_getbinval(tuple, desc, 5, &isnull));
		held->next_try = 0;
		held->dirty = held->outdated = held->released = held->paused = false;
	}
}

static void
pause_topic(const char *topic, MessageClock from)
{
	bool		found;
	Held	   *held = held_enter(topic, &found);

	if (!found || held->released)
	{
		held->cursor = from;
		held->tries = 0;
		held->next_try = 0;
		held->released = held->outdated = false;
		held_begin_pass(held);
	}
	held->state = HELD_WAITING;
	held->paused = held->dirty = true;
	held->reason = reason_constant("paused");
	held->error[0] = '\0';
}

void
held_load_paused(MessageClock from)
{
	uint64		rows = store_execute("SELECT topic FROM outbox.paused", 0, NULL, NULL, NULL);
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->paused)
			held->next_try = 0;
		held->paused = false;
	}
	for (uint64 i = 0; i < rows; i++)
		pause_topic(SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1), from);
}

static void
wait_longer(Held *held)
{
	held->state = HELD_WAITING;
	held->tries++;
	held->next_try = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												 backoff_delay(held->tries, HELD_DELAY_MIN,
															   HELD_DELAY_MAX));
	held->outdated = true;
}

void
held_hold(const char *topic, MessageClock from, const char *reason, const char *error)
{
	bool		found;
	Held	   *held = held_enter(topic, &found);

	if (!found || held->released)
	{
		held->cursor = from;
		held->tries = 0;
		held->released = held->paused = false;
		held_begin_pass(held);
		ereport(LOG,
				(errmsg("topic \"%s\" is held: %s", topic, error),
				 errdetail("Its messages wait; those of other topics don't.")));
	}
	held->cursor = Min(held->cursor, from);
	held->reason = reason_constant(reason);
	safe_text_copy(held->error, error, sizeof(held->error));
	held->dirty = true;
	wait_longer(held);
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
	held->met = false;
	held->found = 0;
}

/*
 * What a topic's own sweep read went out, or the topic is WAITING again by now.
 * A probe that found nothing to send has nothing to wait for either.
 */
void
held_end_pass(void)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state < HELD_PROBING || held->released)
			continue;
		if (held->met && held->passed_by == PG_UINT64_MAX &&
			(held->state == HELD_CATCHING_UP || held->found == 0))
		{
			held->released = true;
			ereport(LOG, (errmsg("topic \"%s\" goes on", held->topic)));
		}
		else
		{
			if (held->found > 0)
				held->state = HELD_CATCHING_UP;
			held->cursor = Min(held->upto, held->passed_by);
		}
		held->dirty = true;
	}
}

void
held_answer(const char *topic, bool usable, const char *reason, const char *error)
{
	Held	   *held = held_find(topic);

	if (held == NULL || held->released || held->state != HELD_ASKED)
		return;
	if (usable)
		held->state = HELD_PROBING;
	else
	{
		held->reason = reason_constant(reason);
		safe_text_copy(held->error, error, sizeof(held->error));
		wait_longer(held);
	}
}

void
held_try_now(const char *topic)
{
	Held	   *held = held_find(topic);

	if (held != NULL && held->state <= HELD_ASKED && !held->paused)
	{
		held->state = HELD_WAITING;
		held->next_try = 0;
	}
}

void
held_try_all_now(void)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
		held_try_now(held->topic);
}

Held *
held_next(HeldIterator *iterator)
{
	if (!iterator->started)
	{
		if (held_topics == NULL)
			return NULL;
		hash_seq_init(&iterator->status, held_topics);
		iterator->started = true;
	}
	return hash_seq_search(&iterator->status);
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

Held *
held_next_question(TimestampTz now)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state <= HELD_ASKED && !held->released && held->next_try <= now &&
			!held->paused)
		{
			held->state = HELD_ASKED;
			held->next_try = TimestampTzPlusMilliseconds(now, ANSWER_TIMEOUT);
			hash_seq_term(&iterator.status);
			return held;
		}
	}
	return NULL;
}

int
held_working(void)
{
	HeldIterator iterator = {0};
	Held	   *held;
	int			n = 0;

	while ((held = held_next(&iterator)) != NULL)
		n += !held->released && held->state >= HELD_PROBING;
	return n;
}

TimestampTz
held_next_try(void)
{
	HeldIterator iterator = {0};
	TimestampTz first = DT_NOEND;
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state <= HELD_ASKED && !held->paused)
			first = Min(first, held->next_try);
	}
	return first;
}

bool
held_is_outdated(void)
{
	HeldIterator iterator = {0};
	Held	   *held;
	bool		outdated = false;

	while ((held = held_next(&iterator)) != NULL)
		outdated = outdated || held->outdated;
	return outdated;
}

bool
held_is_dirty(void)
{
	HeldIterator iterator = {0};
	Held	   *held;
	bool		dirty = false;

	while ((held = held_next(&iterator)) != NULL)
		dirty = dirty || held->dirty;
	return dirty;
}

static void
save_one(Held *held)
{
	static const Oid types[] = {TEXTOID, INT4OID, UUIDOID, TEXTOID, TEXTOID, INT4OID, INT4OID};
	pg_uuid_t	cursor;
	Datum		values[7];

	message_id_lowest(held->cursor, &cursor);
	values[0] = CStringGetTextDatum(held->topic);
	values[1] = Int32GetDatum(publisher);
	values[2] = UUIDPGetDatum(&cursor);
	values[3] = CStringGetTextDatum(held->reason);
	values[4] = CStringGetTextDatum(held->error);
	values[5] = Int32GetDatum(held->tries);
	values[6] = Int32GetDatum(publishers);
	if (held->released)
		store_execute("DELETE FROM outbox.held"
					  " WHERE topic = $1 AND partition = -1 AND publisher = $2",
					  2, types, values, NULL);
	else
		store_execute("INSERT INTO outbox.held AS h"
					  " (topic, partition, publisher, cursor, reason, error, tries, publishers)"
					  " VALUES ($1, -1, $2, $3, $4, $5, $6, $7)"
					  " ON CONFLICT ON CONSTRAINT held_pkey DO UPDATE"
					  " SET cursor = excluded.cursor, reason = excluded.reason,"
					  "  error = excluded.error, tries = excluded.tries",
					  7, types, values, NULL);
}

void
held_save(void)
{
	HeldIterator iterator = {0};
	Held	   *held;

	while ((held = held_next(&iterator)) != NULL)
	{
		if (!held->dirty && !held->outdated)
			continue;
		save_one(held);
		held->dirty = held->outdated = false;
		if (held->released)
			hash_search(held_topics, held->topic, HASH_REMOVE, NULL);
	}
}
