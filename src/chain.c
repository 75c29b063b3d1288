/*-------------------------------------------------------------------------
 *
 * chain.c
 *	  Messages of one key that go out one after the other.
 *
 * Of a topic with hold_key_when_dead the messages of one key in a batch form a
 * chain: each is handed to the bridge when the one before it is acknowledged
 * (deliver.c), so that none has gone out when one turns out to be DEAD.
 *
 * A round trip a message takes its time, and other messages wait for the end of
 * the batch.  So a chain has few of them; what is more goes to the key's queue,
 * as for a key that is held, and the sweep goes on to the other keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "batch.h"
#include "store.h"
#include "topic_config.h"

typedef struct Chain
{
	KeyName		name;			/* must be first */
	int			first;			/* indexes of its first and last message */
	int			last;
	int			length;
} Chain;

/* Has a message in this lane a place in the order of its key? */
static bool
lane_has_order(int lane)
{
	return lane >= 0 && lane < OUTBOX_LANES;
}

/*
 * NULL, or the hold of a key that has enough messages in the batch.  These are
 * in the queue, too, until they have gone out: whatever happens meanwhile, what
 * is there now can't overtake them.
 */
static KeyHold *
hold_long_chain(const Batch *batch, const KeyName *name, int lane)
{
	Chain	   *chain = batch->chains == NULL ? NULL :
		hash_search(batch->chains, name, HASH_FIND, NULL);
	KeyHold    *hold;

	if (chain == NULL || chain->length < CHAIN_MESSAGES)
		return NULL;
	hold = key_hold_make(name, lane, NULL);
	for (int i = chain->first; i >= 0; i = batch->messages[i].next)
		key_queue_add(hold, &batch->messages[i].id);
	return hold;
}

bool
chain_passes_by(Batch *batch, const LogRow *row)
{
	KeyName		name = {.topic = row->topic};
	KeyHold    *hold;
	char	   *key;

	if (!lane_has_order(row->lane) || !key_holds_concern(row->topic))
		return false;
	slot_getsomeattrs(row->slot, Anum_log_key);
	if (row->slot->tts_isnull[Anum_log_key - 1])
		return false;
	name.key = key = TextDatumGetCString(row->slot->tts_values[Anum_log_key - 1]);
	hold = key_hold_find(&name);
	if (hold == NULL)
		hold = hold_long_chain(batch, &name, row->lane);
	if (hold != NULL)
		key_queue_add(hold, &row->id);
	pfree(key);
	return hold != NULL;
}

void
chain_add(Batch *batch)
{
	int			index = batch->n - 1;
	OutMessage *message = &batch->messages[index];
	KeyName		name = {message->record.topic, message->key};
	Chain	   *chain;
	bool		found;

	message->next = -1;
	message->in_chain = message->key != NULL && lane_has_order(message->lane) &&
		topic_config_holds_keys(message->record.topic);

	/* suspects go one by one anyway, and nothing of their key with them */
	if (!message->in_chain || message->suspect != NULL)
		return;
	if (batch->chains == NULL)
		batch->chains = key_names_create("outbox chains", sizeof(Chain), batch->context);
	chain = hash_search(batch->chains, &name, HASH_ENTER, &found);
	if (!found)
	{
		chain->first = index;
		chain->length = 0;
	}
	else
	{
		batch->messages[chain->last].next = index;
		message->fate = FATE_BEHIND;
	}
	chain->last = index;
	chain->length++;
}

/*
 * The first messages of a queue.  One that isn't NEW any more has had its
 * result, or was deleted: it leaves the queue.
 */
static void
read_queue(Batch *batch, KeyHold *hold, int most, Snapshot snapshot)
{
	pg_uuid_t	ids[CHAIN_MESSAGES];
	pg_uuid_t	gone[CHAIN_MESSAGES];
	KeyHold    *holds[CHAIN_MESSAGES];
	int			n = key_queue_read(hold, ids, most);
	int			ngone = 0;
	bool		put_off = false;

	for (int i = 0; i < n && !put_off && !batch_has(batch, 3); i++)
	{
		LogRow		row;
		LogScan    *scan = log_fetch(&ids[i], snapshot, &row);

		if (scan != NULL && row.status == STATUS_NEW)
			put_off = !batch_take(batch, &row, SOURCE_KEY);
		else
		{
			holds[ngone] = hold;
			gone[ngone++] = ids[i];
		}
		if (scan != NULL)
			log_scan_end(scan);
	}
	key_queue_forget(holds, gone, ngone);
	if (n == 0 && !hold->passed_by)
		key_hold_end(hold);
}

/* Where the topic is to be probed, and nothing else of it is there, one does it */
void
chain_read_queues(Batch *batch, Snapshot snapshot)
{
	KeyHoldTurns turns = {0};
	KeyHold    *hold;

	while (!batch_has(batch, 3) && (hold = key_hold_next_turn(&turns)) != NULL)
	{
		Held	   *held = held_find_by_key(held_find_topic(hold->name.topic), hold->name.key);
		bool		probe = held != NULL && held->state == HELD_PROBING;
		int			before = batch->n;

		if (probe && held->found > 0)
			continue;
		read_queue(batch, hold, probe ? 1 : CHAIN_MESSAGES, snapshot);
		if (probe)
			held->found = batch->n - before;
	}
	key_hold_stop_turns(&turns);
}

/* Takes from the queues what went out, or died */
static void
forget_queued(const Batch *batch)
{
	KeyHold   **holds = palloc(Max(batch->n, 1) * sizeof(KeyHold *));
	pg_uuid_t  *ids = palloc(Max(batch->n, 1) * sizeof(pg_uuid_t));
	int			n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		const OutMessage *message = &batch->messages[i];
		KeyName		name = {message->record.topic, message->key};
		KeyHold    *hold;

		if (message->key == NULL || !lane_has_order(message->lane) ||
			!key_holds_concern(name.topic) || (hold = key_hold_find(&name)) == NULL)
			continue;
		if (message->fate == FATE_LEFT)
		{
			hold->left = true;
			continue;
		}

		/* what came in late may lie before it, and is to be read yet */
		if (!hold->left &&
			!(hold->passed_by && memcmp(&hold->entered, &message->id, UUID_LEN) < 0))
			hold->mark = message->id;
		holds[n] = hold;
		ids[n++] = message->id;
	}
	key_queue_forget(holds, ids, n);
}

/*
 * What is SENT at last may be the message that holds a key, which is another
 * publisher's: all are told to look.
 */
static void
tell_of_resent(const Batch *batch)
{
	static const Oid types[] = {UUIDARRAYOID};
	pg_uuid_t  *ids = palloc(Max(batch->n, 1) * sizeof(pg_uuid_t));
	Datum		values[1];
	int			n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		const OutMessage *message = &batch->messages[i];

		if (message->fate == FATE_SENT && message->key != NULL &&
			!lane_has_order(message->lane) &&
			topic_config_holds_keys(message->record.topic))
			ids[n++] = message->id;
	}
	if (n == 0)
		return;
	values[0] = store_id_array(ids, n);
	if (store_execute("SELECT FROM outbox.key_hold WHERE id = ANY ($1)",
					  1, types, values, NULL) > 0)
		announce_wake_at_commit();
}

void
chain_write(const Batch *batch)
{
	forget_queued(batch);
	tell_of_resent(batch);
	for (int i = 0; i < batch->n; i++)
	{
		const OutMessage *message = &batch->messages[i];
		KeyName		name = {message->record.topic, message->key};

		if (message->in_chain && message->fate == FATE_DEAD)
			key_hold_make(&name, message->lane, &message->id);
	}
}
