/*-------------------------------------------------------------------------
 *
 * key_hold.c
 *	  Keys whose messages wait in a queue: hold_key_when_dead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "held.h"
#include "key_hold.h"
#include "store.h"
#include "topic_config.h"

/* The net under what nobody tells the publisher, such as a late result (ms) */
#define JUDGE_INTERVAL	9000

/* Messages that one pass enters: it isn't to keep the others waiting */
#define QUEUE_STEP		5000
#define QUEUE_ROOM		(QUEUE_STEP + CHAIN_MESSAGES)

static MemoryContext context = NULL;
static HTAB *key_holds = NULL;
static TimestampTz judge_at = 0;
static int	ngoing_on = 0;
static bool strays = false;		/* some of those are of topics that hold no keys */

/* What this pass has entered */
static Datum *new_numbers = NULL;
static pg_uuid_t *new_ids = NULL;
static int	nnew = 0;

/* ---------------------------------------------------------------------
 * In memory
 * --------------------------------------------------------------------- */

static uint32
name_hash(const void *key, Size size)
{
	const KeyName *name = key;

	return hash_combine(hash_bytes((const unsigned char *) name->topic, strlen(name->topic)),
						hash_bytes((const unsigned char *) name->key, strlen(name->key)));
}

static int
name_compare(const void *a, const void *b, Size size)
{
	const KeyName *left = a;
	const KeyName *right = b;
	int			order = strcmp(left->topic, right->topic);

	return order != 0 ? order : strcmp(left->key, right->key);
}

HTAB *
key_names_create(const char *title, Size entry_size, MemoryContext parent)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(KeyName);
	ctl.entrysize = entry_size;
	ctl.hash = name_hash;
	ctl.match = name_compare;
	ctl.hcxt = parent;
	return hash_create(title, 64, &ctl,
					   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
}

static bool
any_exists(void)
{
	return key_holds != NULL && hash_get_num_entries(key_holds) > 0;
}

bool
key_holds_concern(const char *topic)
{
	return topic_config_holds_keys(topic) || (ngoing_on > 0 && strays);
}

KeyHold *
key_hold_find(const KeyName *name)
{
	return any_exists() ? hash_search(key_holds, name, HASH_FIND, NULL) : NULL;
}

/* There must be none yet of that name */
static KeyHold *
hold_enter(const KeyName *name, int64 number)
{
	KeyName		copy;
	KeyHold    *hold;

	copy.topic = MemoryContextStrdup(context, name->topic);
	copy.key = MemoryContextStrdup(context, name->key);
	hold = hash_search(key_holds, &copy, HASH_ENTER, NULL);
	memset((char *) hold + sizeof(KeyName), 0, sizeof(KeyHold) - sizeof(KeyName));
	hold->number = number;
	return hold;
}

static void
set_going_on(KeyHold *hold, bool goes_on)
{
	ngoing_on += (int) goes_on - (int) hold->goes_on;
	hold->goes_on = goes_on;
}

/* The messages of its topic may be published, or one may to try it */
static bool
may_go_on(const KeyHold *hold)
{
	const Held *held = held_find_by_key(held_find_topic(hold->name.topic), hold->name.key);

	return hold->goes_on && (held == NULL || held->state >= HELD_PROBING);
}

/*
 * Who had no turn in the last pass, for it was full, has it in this one.  Where
 * all had theirs, they begin anew.
 */
void
key_holds_begin_pass(void)
{
	HASH_SEQ_STATUS status;
	KeyHold    *hold;
	bool		all = true;

	strays = false;
	if (ngoing_on == 0)
		return;
	hash_seq_init(&status, key_holds);
	while ((hold = hash_seq_search(&status)) != NULL)
	{
		hold->passed_by = hold->left = false;
		strays = strays || (hold->goes_on && !topic_config_holds_keys(hold->name.topic));
		all = all && (hold->served || !may_go_on(hold));
	}
	if (!all)
		return;
	hash_seq_init(&status, key_holds);
	while ((hold = hash_seq_search(&status)) != NULL)
		hold->served = false;
}

KeyHold *
key_hold_next_turn(KeyHoldTurns *turns)
{
	KeyHold    *hold;

	if (!turns->started)
	{
		if (ngoing_on == 0)
			return NULL;
		hash_seq_init(&turns->status, key_holds);
		turns->started = true;
	}
	while ((hold = hash_seq_search(&turns->status)) != NULL)
	{
		if (!hold->served && may_go_on(hold))
		{
			hold->served = true;
			return hold;
		}
	}
	turns->started = false;
	return NULL;
}

void
key_hold_stop_turns(KeyHoldTurns *turns)
{
	if (turns->started)
		hash_seq_term(&turns->status);
	turns->started = false;
}

bool
key_holds_working(void)
{
	HASH_SEQ_STATUS status;
	KeyHold    *hold;

	if (ngoing_on == 0)
		return false;
	hash_seq_init(&status, key_holds);
	while ((hold = hash_seq_search(&status)) != NULL)
	{
		if (may_go_on(hold))
		{
			hash_seq_term(&status);
			return true;
		}
	}
	return false;
}

/* ---------------------------------------------------------------------
 * The holds
 * --------------------------------------------------------------------- */

void
key_holds_load(const Sweep *sweep)
{
	uint64		rows;

	if (context == NULL)
	{
		context = AllocSetContextCreate(TopMemoryContext, "outbox held keys",
										ALLOCSET_DEFAULT_SIZES);
		new_numbers = MemoryContextAlloc(TopMemoryContext, QUEUE_ROOM * sizeof(Datum));
		new_ids = MemoryContextAlloc(TopMemoryContext, QUEUE_ROOM * sizeof(pg_uuid_t));
	}
	MemoryContextReset(context);
	key_holds = key_names_create("outbox held keys", sizeof(KeyHold), context);
	nnew = 0;
	ngoing_on = 0;
	judge_at = 0;

	/* decisions about what is held no more */
	store_execute("DELETE FROM outbox.key_released AS r WHERE NOT EXISTS"
				  " (SELECT FROM outbox.key_hold AS h WHERE h.id = r.id)", 0, NULL, NULL, NULL);
	rows = store_execute("SELECT topic, key, hold, lane, id, goes_on FROM outbox.key_hold",
						 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		KeyName		name = {SPI_getvalue(tuple, desc, 1), SPI_getvalue(tuple, desc, 2)};
		KeyHold    *hold;
		Datum		dead;

		if (!sweep_has_lane(sweep, DatumGetInt16(SPI_getbinval(tuple, desc, 4, &isnull))))
			continue;
		hold = hold_enter(&name, DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull)));
		set_going_on(hold, DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull)));
		dead = SPI_getbinval(tuple, desc, 5, &isnull);
		if (!isnull)
			hold->dead = *DatumGetUUIDP(dead);
	}
}

bool
key_holds_due(void)
{
	return any_exists() && GetCurrentTimestamp() >= judge_at;
}

static int
compare_dead(const void *a, const void *b)
{
	return memcmp(&(*(KeyHold *const *) a)->dead, &(*(KeyHold *const *) b)->dead, UUID_LEN);
}

/* The HELD ones, by the ids of their DEAD messages */
static KeyHold **
held_ones(int *n)
{
	KeyHold   **holds = palloc(hash_get_num_entries(key_holds) * sizeof(KeyHold *));
	HASH_SEQ_STATUS status;
	KeyHold    *hold;

	*n = 0;
	hash_seq_init(&status, key_holds);
	while ((hold = hash_seq_search(&status)) != NULL)
	{
		if (!hold->goes_on)
			holds[(*n)++] = hold;
	}
	qsort(holds, *n, sizeof(KeyHold *), compare_dead);
	return holds;
}

/* A message that isn't NEW or DEAD arrived, or will never be published */
static bool
is_over(const MessageState *state)
{
	return !state->found || (state->status != STATUS_NEW && state->status != STATUS_DEAD);
}

static bool
is_released(const KeyHold *hold)
{
	static const Oid types[] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(&hold->dead)};

	return store_execute("SELECT FROM outbox.key_released WHERE id = $1",
						 1, types, values, NULL) > 0;
}

void
key_holds_judge(void)
{
	static const Oid types[] = {INT8OID};
	KeyHold   **holds;
	pg_uuid_t  *ids;
	MessageState *states;
	bool		any_released;
	int			n;

	if (!any_exists())
		return;
	judge_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), JUDGE_INTERVAL);
	any_released = store_execute("SELECT FROM outbox.key_released LIMIT 1",
								 0, NULL, NULL, NULL) > 0;
	holds = held_ones(&n);
	ids = palloc(Max(n, 1) * sizeof(pg_uuid_t));
	states = palloc(Max(n, 1) * sizeof(MessageState));
	for (int i = 0; i < n; i++)
		ids[i] = holds[i]->dead;
	store_read_states(ids, n, states);
	for (int i = 0; i < n; i++)
	{
		Datum		values[1] = {Int64GetDatum(holds[i]->number)};

		if (!is_over(&states[i]) && topic_config_holds_keys(holds[i]->name.topic) &&
			!(any_released && is_released(holds[i])))
			continue;
		set_going_on(holds[i], true);
		store_execute("UPDATE outbox.key_hold SET goes_on = true WHERE hold = $1",
					  1, types, values, NULL);
		ereport(LOG,
				(errmsg("a key of topic \"%s\" goes on", holds[i]->name.topic),
				 errdetail("Message %s held it.",
						   DatumGetCString(DirectFunctionCall1(uuid_out,
															   UUIDPGetDatum(&ids[i]))))));
	}
}

KeyHold *
key_hold_make(const KeyName *name, int lane, const pg_uuid_t *dead)
{
	static const Oid types[] = {INT2OID, TEXTOID, TEXTOID, UUIDOID, INT8OID};
	const char *nulls = dead == NULL ? "   n " : NULL;
	KeyHold    *hold = key_hold_find(name);
	Datum		values[5];
	Datum		number;
	bool		isnull;

	values[0] = Int16GetDatum(lane);
	values[1] = CStringGetTextDatum(name->topic);
	values[2] = CStringGetTextDatum(name->key);
	values[3] = dead == NULL ? (Datum) 0 : UUIDPGetDatum(dead);
	values[4] = Int64GetDatum(hold == NULL ? 0 : hold->number);
	if (hold != NULL)
		store_execute("UPDATE outbox.key_hold SET id = $4, goes_on = $4 IS NULL,"
					  "  since = pg_catalog.clock_timestamp() WHERE hold = $5",
					  5, types, values, nulls);
	else if (store_fetch_one("INSERT INTO outbox.key_hold (lane, topic, key, id, goes_on)"
							 " VALUES ($1, $2, $3, $4, $4 IS NULL) RETURNING hold",
							 4, types, values, nulls, &isnull, &number))
		hold = hold_enter(name, DatumGetInt64(number));
	else
		elog(ERROR, "could not hold a key of topic \"%s\"", name->topic);
	set_going_on(hold, dead == NULL);
	if (dead != NULL)
	{
		/* its result may have come meanwhile */
		hold->dead = *dead;
		judge_at = 0;
	}
	return hold;
}

void
key_hold_end(KeyHold *hold)
{
	static const Oid types[] = {INT8OID};
	static const pg_uuid_t none = {0};
	Datum		values[1] = {Int64GetDatum(hold->number)};
	KeyName		name = hold->name;

	if (memcmp(&hold->mark, &none, UUID_LEN) != 0)
	{
		hold->mark = none;
		return;
	}
	store_execute("WITH ended AS (DELETE FROM outbox.key_hold WHERE hold = $1 RETURNING id)"
				  " DELETE FROM outbox.key_released AS r USING ended AS e WHERE r.id = e.id",
				  1, types, values, NULL);
	set_going_on(hold, false);
	hash_search(key_holds, &name, HASH_REMOVE, NULL);
	pfree((char *) name.topic);
	pfree((char *) name.key);
}

/* ---------------------------------------------------------------------
 * The queues
 * --------------------------------------------------------------------- */

static const Oid queue_types[] = {INT8ARRAYOID, UUIDARRAYOID};

static Datum
number_array(Datum *numbers, int n)
{
	return PointerGetDatum(construct_array(numbers, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* A lower id than the mark's is that of a late commit: then all is read again */
void
key_queue_add(KeyHold *hold, const pg_uuid_t *id)
{
	Assert(nnew < QUEUE_ROOM);
	new_numbers[nnew] = Int64GetDatum(hold->number);
	new_ids[nnew++] = *id;
	if (!hold->passed_by || memcmp(id, &hold->entered, UUID_LEN) < 0)
		hold->entered = *id;
	hold->passed_by = true;
	if (memcmp(id, &hold->mark, UUID_LEN) <= 0)
		memset(&hold->mark, 0, UUID_LEN);
}

bool
key_queue_is_full(void)
{
	return nnew >= QUEUE_STEP;
}

void
key_queue_save(void)
{
	Datum		values[2];

	if (nnew == 0)
		return;
	values[0] = number_array(new_numbers, nnew);
	values[1] = store_id_array(new_ids, nnew);
	store_execute("INSERT INTO outbox.key_waiting (hold, id)"
				  " SELECT * FROM unnest($1, $2) ON CONFLICT DO NOTHING",
				  2, queue_types, values, NULL);
	nnew = 0;
}

int
key_queue_read(const KeyHold *hold, pg_uuid_t *ids, int max)
{
	static const Oid types[] = {INT8OID, UUIDOID, INT4OID};
	Datum		values[3];
	int			n;

	values[0] = Int64GetDatum(hold->number);
	values[1] = UUIDPGetDatum(&hold->mark);
	values[2] = Int32GetDatum(max);
	n = (int) store_query("SELECT id FROM outbox.key_waiting WHERE hold = $1 AND id > $2"
						  " ORDER BY id LIMIT $3", 3, types, values);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		ids[i] = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1, &isnull));
	}
	return n;
}

void
key_queue_forget(KeyHold *const *holds, const pg_uuid_t *ids, int n)
{
	Datum	   *numbers = palloc(Max(n, 1) * sizeof(Datum));
	Datum		values[2];

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		numbers[i] = Int64GetDatum(holds[i]->number);
	values[0] = number_array(numbers, n);
	values[1] = store_id_array(ids, n);
	store_execute("DELETE FROM outbox.key_waiting AS w USING unnest($1, $2) AS n(hold, id)"
				  " WHERE w.hold = n.hold AND w.id = n.id", 2, queue_types, values, NULL);
}
