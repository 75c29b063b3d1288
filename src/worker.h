/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What publishers and consumers have in common: their session, their
 *	  bridge, their sleep.
 *
 * All of it is called from a worker process only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

#include "bridge.h"
#include "compat.h"
#include "launcher.h"
#include "outbox.h"

typedef struct Worker
{
	WorkerKind	kind;
	int			number;			/* among those of its kind, from 0 */
	int			count;			/* how many of its kind there are */
	DatabaseSlot *db;
	WorkerSlot *slot;			/* what outbox.worker shows */
	Oid			extension;		/* its OID, checked in every transaction */
	bool		locked_out;		/* a command on the extension is under way */
	uint32		settings_generation;	/* of the database slot, as last seen */

	Bridge	   *bridge;			/* NULL: none */
	bool		bridge_ready;	/* it answered the HELLO */
	bool		brokers_up;
	int			bridge_failures;	/* in a row */
	bool		bridge_at_risk; /* its end would be no failure: it has a message to test */
	bool		bridge_crashed; /* the last one ended by itself, and then */
	bool		bridge_was_connected;	/* the brokers were up */
	TimestampTz bridge_started_at;
	TimestampTz bridge_not_before;	/* a new one may start from then on */
	uint32		bridge_config;	/* hash of the properties it was given */
	bool		config_changed; /* a reload has to be compared with that */
} Worker;

extern PGDLLEXPORT void outbox_worker_main(Datum arg);

/*
 * Is this the one of the workers of its kind that a partition belongs to?  Each
 * belongs to one of them, and those of a topic are spread evenly.
 */
extern bool worker_owns(const Worker *worker, const char *topic, int32 partition);

/*
 * Begins a transaction: SPI is connected, no snapshot is taken yet.  False,
 * with none begun, if the worker has to rest: the extension is being dropped,
 * of another version, or the database is parked.  Ends the process if the
 * extension is gone.
 */
extern bool worker_begin(Worker *worker);

/* Commits it, as synchronously as the local disk allows */
extern void worker_commit(Worker *worker);

/*
 * True if the worker may talk to Kafka: settings allow it, the database isn't
 * parked, the bridge runs and the brokers are up.  Starts the bridge when it
 * is due.  To be called at each turn of the main loop, before anything else.
 */
extern bool worker_may_work(Worker *worker);

/* Do the settings let workers work at all? */
extern bool worker_is_enabled(void);

/*
 * Sleeps until the latch is set, the bridge has something to say, or timeout
 * milliseconds have passed; answers interrupts, reloads settings, keeps the
 * bridge's watchdog.  busy: outcomes are waited for.
 */
extern void worker_wait(Worker *worker, long timeout, bool busy);

/*
 * Starts the bridge with the properties of the settings; raises ERROR where
 * they can't be used.
 */
extern void worker_bridge_start(Worker *worker);

/* After a reload: drops the bridge if it needs other properties now */
extern void worker_bridge_compare(Worker *worker);

/*
 * The next event from the bridge, false if there is none.  What concerns
 * every worker (READY, LOG, BROKERS, DIED) is dealt with here; BROKERS and
 * DIED are returned all the same.  After DIED worker->bridge is NULL.
 */
extern bool worker_next_event(Worker *worker, BridgeEvent *event);

/* The bridge did its work well: the next failure is a first one */
extern void worker_bridge_proved(Worker *worker);

/*
 * The bridge failed, and is still there: no new one starts before so many
 * milliseconds, which are returned.  They grow with the failures in a row.
 */
extern long worker_bridge_back_off(Worker *worker, long base, long max);

/* What outbox.worker shows in that time; valid until the next call */
extern const char *worker_bridge_waiting(const Worker *worker);

/* Milliseconds until a new one may start, or "most" if it runs or may start */
extern long worker_bridge_time_to_start(const Worker *worker, long most);

/* Ends the bridge; a new one is started when the worker may work again */
extern void worker_bridge_drop(Worker *worker, const char *why);

/* The same where it failed: that is logged, and there is a back-off */
extern void worker_bridge_failed(Worker *worker, const char *how);

/* ---- settings; worker_settings.c ---- */

/* Gives the session its own; once a process */
extern void worker_settings_init(void);

/*
 * Within a nest level of settings: those that are a worker's own get the
 * values they would have in any session of this database.
 */
extern void worker_settings_reset(void);

/* The worker's own search path for its own statements among others' settings */
extern int	worker_settings_begin(void);
extern void worker_settings_end(int nest_level);

/* What outbox.worker shows */
extern void worker_set_state(Worker *worker, const char *state);
extern void worker_set_error(Worker *worker, const char *error);

/*
 * Exponential back-off with jitter: milliseconds to wait after so many
 * failures in a row (1 or more), between base and max.
 */
extern long backoff_delay(int failures, long base, long max);

/* publisher.c and consumer.c: the main loops; they don't return */
pg_noreturn extern void publisher_main(Worker *worker);
pg_noreturn extern void consumer_main(Worker *worker);

#endif							/* OUTBOX_WORKER_H */
