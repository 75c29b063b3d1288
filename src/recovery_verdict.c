/*-------------------------------------------------------------------------
 *
 * recovery_verdict.c
 *	  What recovery decides about messages, collected and then written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "owed_call.h"
#include "recovery_verdict.h"
#include "store.h"

/* A message whose handler is owed a call is looked at again after so long */
#define OWED_DELAY		(15 * USECS_PER_MINUTE)

Verdicts *
verdicts_make(int max)
{
	Verdicts   *verdicts = palloc0(sizeof(Verdicts));

	verdicts->again = palloc(max * sizeof(pg_uuid_t));
	verdicts->dead = palloc(max * sizeof(pg_uuid_t));
	verdicts->dead_errors = palloc(max * sizeof(char *));
	verdicts->later = palloc(2 * max * sizeof(Delayed));
	verdicts->done = palloc(max * sizeof(Delayed));
	return verdicts;
}

bool
verdict_sent(Verdicts *verdicts, const pg_uuid_t *id, const TopicConfig *config,
		   int attempts, TimestampTz updated_at, TimestampTz now)
{
	TimestampTz due = updated_at + topic_config_patience(config, attempts);

	if (due > now)
	{
		verdicts->later[verdicts->nlater].due_at = due;
		verdicts->later[verdicts->nlater++].id = *id;
		return false;
	}
	if (config->max_attempts > 0 && attempts >= config->max_attempts)
	{
		verdicts->dead[verdicts->ndead] = *id;
		verdicts->dead_errors[verdicts->ndead++] =
			psprintf("no result after %d attempts; what became of it is unknown", attempts);
		return false;
	}
	verdicts->again[verdicts->nagain++] = *id;
	return true;
}

/*
 * Leaves out of ids, and of errors if there are any, the messages whose result
 * is known and waits for a handler; they are looked at again later.
 */
static int
without_owed(Verdicts *verdicts, pg_uuid_t *ids, const char **errors, int n)
{
	char	   *outcomes = palloc(Max(n, 1));
	int			kept = 0;

	if (n == 0)
		return 0;
	owed_calls_find(ids, n, outcomes);
	for (int i = 0; i < n; i++)
	{
		if (outcomes[i] != 0)
		{
			Delayed    *later = &verdicts->later[verdicts->nlater++];

			later->due_at = GetCurrentTimestamp() + OWED_DELAY;
			later->id = ids[i];
			continue;
		}
		if (errors != NULL)
			errors[kept] = errors[i];
		ids[kept++] = ids[i];
	}
	return kept;
}

void
verdicts_write(Verdicts *verdicts)
{
	StatusChange again = {.to = STATUS_NEW, .from = "S"};
	StatusChange dead = {.to = STATUS_DEAD, .from = "S"};
	int			changed;

	verdicts->nagain = without_owed(verdicts, verdicts->again, NULL, verdicts->nagain);
	verdicts->ndead = without_owed(verdicts, verdicts->dead, verdicts->dead_errors,
								   verdicts->ndead);
	store_change_status(verdicts->again, verdicts->nagain, &again, NULL);
	dead.errors = verdicts->dead_errors;
	changed = store_change_status(verdicts->dead, verdicts->ndead, &dead, NULL);
	if (changed > 0)
		ereport(LOG,
				(errmsg_plural("%d message is dead: no result after its last attempt",
							   "%d messages are dead: no result after their last attempt",
							   changed, changed)));
	pg_atomic_fetch_add_u64(&outbox_my_database()->dead, changed);
	recovery_forget(verdicts->done, verdicts->ndone);
	recovery_schedule(verdicts->later, verdicts->nlater);
}

void
verdict_later(Verdicts *verdicts, const Delayed *row)
{
	Delayed    *later = &verdicts->later[verdicts->nlater++];

	later->due_at = GetCurrentTimestamp() + OWED_DELAY;
	later->id = row->id;
	verdicts->done[verdicts->ndone++] = *row;
}
