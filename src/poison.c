/*-------------------------------------------------------------------------
 *
 * poison.c
 *	  Suspects: NEW messages that may have killed a bridge.
 *
 * Where every bridge dies, whatever it is given, no message is to blame.  So a
 * death counts only if some other message of the database was acknowledged
 * since the last one that counted, or since the message became a suspect.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "poison.h"
#include "store.h"
#include "worker.h"

/* How long to wait before a caught one is tried again (ms) */
#define TRY_DELAY_MIN	100
#define TRY_DELAY_MAX	30000

/* Suspects of one pass; the others are left their part of it */
#define PASS_SUSPECTS	1000

/* One that no pass came by for so long may have a status other than NEW (ms) */
#define LOST_AFTER		60000

/* A topic and key whose messages wait for a suspect; their hash stands for them */
typedef struct SuspectKey
{
	uint64		hash;			/* the key: must be first */
	bool		later;			/* what follows goes in another pass, suspect or not */
} SuspectKey;

static HTAB *suspects = NULL;

/* No caught one goes before this; it grows with the deaths that don't count */
static TimestampTz not_before = 0;
static int	vain_deaths = 0;

/* of the current pass */
static HTAB *pass_keys = NULL;
static int	pass_suspects = 0;
static TimestampTz pass_next_try = DT_NOEND;
static uint64 pass_proof = PG_UINT64_MAX;	/* lowest that one waits for */

static uint64
acknowledged(void)
{
	return pg_atomic_read_u64(&outbox_my_database()->acknowledged);
}

void
poison_acknowledged(int n)
{
	if (n > 0)
		pg_atomic_fetch_add_u64(&outbox_my_database()->acknowledged, n);
}

static Suspect *
enter(const pg_uuid_t *id)
{
	bool		found;
	Suspect    *suspect;

	if (suspects == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(pg_uuid_t);
		ctl.entrysize = sizeof(Suspect);
		suspects = hash_create("outbox suspects", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	suspect = hash_search(suspects, id, HASH_ENTER, &found);
	if (!found)
	{
		memset(suspect, 0, sizeof(Suspect));
		suspect->id = *id;
		suspect->proof = acknowledged();
		suspect->met_at = GetCurrentTimestamp();
	}
	return suspect;
}

static int
number_of_suspects(void)
{
	return suspects == NULL ? 0 : (int) hash_get_num_entries(suspects);
}

bool
poison_has_suspects(void)
{
	return number_of_suspects() > 0;
}

void
poison_load(void)
{
	uint64		rows = store_execute("SELECT id, tries FROM outbox.suspect", 0, NULL, NULL, NULL);

	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		Suspect    *suspect = enter(DatumGetUUIDP(SPI_getbinval(tuple, desc, 1, &isnull)));

		if (suspect->dirty)
			continue;
		suspect->known = true;
		suspect->tries = DatumGetInt32(SPI_getbinval(tuple, desc, 2, &isnull));
		suspect->caught = suspect->caught || suspect->tries > 0;
	}
}

/* ---------------------------------------------------------------------
 * Whose turn it is
 * --------------------------------------------------------------------- */

void
poison_begin_pass(void)
{
	if (pass_keys != NULL)
		hash_destroy(pass_keys);
	pass_keys = NULL;
	pass_suspects = 0;
	pass_next_try = DT_NOEND;
	pass_proof = PG_UINT64_MAX;
}

/* False if it has no key, and so no order */
static bool
hash_key(const LogRow *row, uint64 *hash)
{
	TupleTableSlot *slot = row->slot;
	text	   *key;

	slot_getsomeattrs(slot, Anum_log_key);
	if (slot->tts_isnull[Anum_log_key - 1])
		return false;
	key = DatumGetTextPP(slot->tts_values[Anum_log_key - 1]);
	*hash = hash_bytes_extended((const unsigned char *) row->topic, strlen(row->topic), 0);
	*hash = hash_bytes_extended((const unsigned char *) VARDATA_ANY(key),
								VARSIZE_ANY_EXHDR(key), *hash);
	return true;
}

/* What this pass has met of the same topic and key, or NULL */
static SuspectKey *
find_key(bool has_key, uint64 hash)
{
	return has_key && pass_keys != NULL ? hash_search(pass_keys, &hash, HASH_FIND, NULL) : NULL;
}

static void
enter_key(uint64 hash, bool later)
{
	SuspectKey *key;
	bool		found;

	if (pass_keys == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(SuspectKey);
		pass_keys = hash_create("outbox suspects' keys", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	key = hash_search(pass_keys, &hash, HASH_ENTER, &found);
	key->later = later || (found && key->later);
}

/*
 * All publishers have read the table, and only one deals with the message.  Has
 * that settled it, and it is NEW again, it is none any more.
 */
static bool
is_still_one(Suspect *suspect)
{
	static const Oid types[] = {UUIDOID};
	Datum		values[1] = {UUIDPGetDatum(&suspect->id)};
	Datum		tries;
	bool		isnull;

	if (!suspect->own)
	{
		if (!store_fetch_one("SELECT tries FROM outbox.suspect WHERE id = $1",
							 1, types, values, NULL, &isnull, &tries))
			return false;
		suspect->tries = DatumGetInt32(tries);
		suspect->own = true;
	}
	return true;
}

/* The suspect with this id, or NULL */
static Suspect *
find_suspect(const pg_uuid_t *id)
{
	Suspect    *suspect = hash_search(suspects, id, HASH_FIND, NULL);

	if (suspect == NULL || is_still_one(suspect))
		return suspect;
	hash_search(suspects, id, HASH_REMOVE, NULL);
	return NULL;
}

/* May a caught one go, or what does it wait for? */
static bool
is_due(const Suspect *suspect, TimestampTz now)
{
	if (now >= not_before || (suspect->wants_proof && acknowledged() > suspect->proof))
		return true;
	pass_next_try = Min(pass_next_try, not_before);
	if (suspect->wants_proof)
		pass_proof = Min(pass_proof, suspect->proof);
	return false;
}

SuspectTurn
poison_turn(const LogRow *row, Suspect **suspect)
{
	TimestampTz now;
	SuspectKey *key;
	uint64		hash = 0;
	bool		has_key;
	bool		later;

	*suspect = NULL;
	if (number_of_suspects() == 0)
		return TURN_TOGETHER;
	has_key = hash_key(row, &hash);
	key = find_key(has_key, hash);
	*suspect = find_suspect(&row->id);
	if (*suspect == NULL)
		return key == NULL ? TURN_TOGETHER : TURN_LATER;

	/* it is NEW, so whatever was to be its end wasn't written */
	(*suspect)->settled = false;
	(*suspect)->met_at = now = GetCurrentTimestamp();
	if ((*suspect)->caught)
		later = key != NULL || !is_due(*suspect, now);
	else
		later = (key != NULL && key->later) || pass_suspects >= PASS_SUSPECTS;
	if (has_key)
		enter_key(hash, later || (*suspect)->caught);
	pass_suspects += !later;
	return later ? TURN_LATER : TURN_ALONE;
}

TimestampTz
poison_next_try(void)
{
	return acknowledged() > pass_proof ? GetCurrentTimestamp() : pass_next_try;
}

/* ---------------------------------------------------------------------
 * What a bridge died on
 * --------------------------------------------------------------------- */

Suspect *
poison_suspect(const pg_uuid_t *id)
{
	Suspect    *suspect = enter(id);

	suspect->own = true;
	suspect->settled = false;
	suspect->dirty = suspect->dirty || !suspect->known;
	return suspect;
}

const char *
poison_caught(Suspect *suspect, bool crashed, bool soon, bool connected, const char *how)
{
	uint64		proof = acknowledged();
	const char *why_not = NULL;

	if (!crashed)
		why_not = "the bridge didn't end by itself";
	else if (!soon)
		why_not = "the bridge had it for more than a second";
	else if (!connected)
		why_not = "the brokers couldn't be reached";
	else if (proof == suspect->proof)
		why_not = "no other message has gone out in between";

	suspect->caught = suspect->dirty = true;
	suspect->wants_proof = crashed && soon && connected && why_not != NULL;
	suspect->tried_at = GetCurrentTimestamp();
	if (suspect->error != NULL)
		pfree(suspect->error);
	suspect->error = MemoryContextStrdup(TopMemoryContext, how);
	if (why_not == NULL)
	{
		suspect->tries++;
		suspect->proof = proof;
		vain_deaths = 0;
	}
	else
		vain_deaths++;
	not_before = TimestampTzPlusMilliseconds(suspect->tried_at,
											 backoff_delay(Max(vain_deaths, 1), TRY_DELAY_MIN,
														   TRY_DELAY_MAX));
	return why_not;
}

void
poison_settled(Suspect *suspect)
{
	suspect->settled = true;
}

/* ---------------------------------------------------------------------
 * The table
 * --------------------------------------------------------------------- */

bool
poison_is_dirty(void)
{
	HASH_SEQ_STATUS status;
	Suspect    *suspect;
	bool		dirty = false;

	if (number_of_suspects() == 0)
		return false;
	hash_seq_init(&status, suspects);
	while ((suspect = hash_seq_search(&status)) != NULL)
		dirty = dirty || suspect->dirty || suspect->settled;
	return dirty;
}

/* A result may have come, or somebody deleted it: what isn't NEW is settled */
static void
look_for_lost(void)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS status;
	Suspect    *suspect;

	hash_seq_init(&status, suspects);
	while ((suspect = hash_seq_search(&status)) != NULL)
	{
		MessageState state;

		if (!TimestampDifferenceExceeds(suspect->met_at, now, LOST_AFTER))
			continue;
		store_read_states(&suspect->id, 1, &state);
		suspect->met_at = now;
		suspect->settled = !state.found || state.status != STATUS_NEW;
	}
}

static void
save_caught(const Suspect *suspect)
{
	static const Oid types[] = {UUIDOID, INT4OID, TEXTOID};
	Datum		values[3];

	values[0] = UUIDPGetDatum(&suspect->id);
	values[1] = Int32GetDatum(suspect->tries);
	values[2] = CStringGetTextDatum(suspect->error);
	store_execute("INSERT INTO outbox.suspect (id, tries, error) VALUES ($1, $2, $3)"
				  " ON CONFLICT ON CONSTRAINT suspect_pkey DO UPDATE"
				  " SET tries = excluded.tries, error = excluded.error",
				  3, types, values, NULL);
}

/* The ids of those that settled, or aren't known to the table */
static Datum
ids_of(bool settled, int *n)
{
	pg_uuid_t  *ids = palloc(number_of_suspects() * sizeof(pg_uuid_t));
	HASH_SEQ_STATUS status;
	Suspect    *suspect;
	Datum		array;

	*n = 0;
	hash_seq_init(&status, suspects);
	while ((suspect = hash_seq_search(&status)) != NULL)
	{
		if (settled ? suspect->settled : !suspect->known && !suspect->settled)
			ids[(*n)++] = suspect->id;
	}
	array = store_id_array(ids, *n);
	pfree(ids);
	return array;
}

void
poison_save(void)
{
	static const Oid types[] = {UUIDARRAYOID};
	HASH_SEQ_STATUS status;
	Suspect    *suspect;
	Datum		ids;
	int			n;

	if (number_of_suspects() == 0)
		return;
	look_for_lost();
	ids = ids_of(true, &n);
	if (n > 0)
		store_execute("DELETE FROM outbox.suspect WHERE id = ANY ($1)", 1, types, &ids, NULL);
	ids = ids_of(false, &n);
	if (n > 0)
		store_execute("INSERT INTO outbox.suspect (id) SELECT unnest($1) ON CONFLICT DO NOTHING",
					  1, types, &ids, NULL);

	hash_seq_init(&status, suspects);
	while ((suspect = hash_seq_search(&status)) != NULL)
	{
		if (suspect->dirty && !suspect->settled && suspect->error != NULL)
			save_caught(suspect);
		suspect->known = true;
		suspect->dirty = false;
		if (suspect->settled)
		{
			if (suspect->error != NULL)
				pfree(suspect->error);
			hash_search(suspects, &suspect->id, HASH_REMOVE, NULL);
		}
	}
}
