/*-------------------------------------------------------------------------
 *
 * outcome_handler.h
 *	  on_confirmed, on_failed and on_dead of outbox.set_topic, as a consumer
 *	  remembers them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OUTCOME_HANDLER_H
#define OUTBOX_OUTCOME_HANDLER_H

#include "handler.h"
#include "outbox.h"
#include "utils/uuid.h"

typedef struct OutcomeHandler
{
	const char *topic;			/* of the messages */
	MessageStatus outcome;		/* STATUS_CONFIRMED, STATUS_FAILED or STATUS_DEAD */
	Handler		handler;
	int			max_attempts;
} OutcomeHandler;

/* Reads the configuration; needs a transaction and SPI */
extern void outcome_handlers_load(void);

/* True if there is any */
extern bool outcome_handlers_exist(void);

/* NULL if there is none */
extern OutcomeHandler *outcome_handler_find(const char *topic, MessageStatus outcome);

/*
 * As whom the handlers run that results on this topic may call: NULL if there
 * is none, "" if they are of several roles.
 */
extern const char *outcome_handlers_role(const char *result_topic);

/* A call, and the result that takes effect with it */
typedef struct OutcomeCall
{
	OutcomeHandler *handler;
	pg_uuid_t	id;
	bool		change;			/* the status becomes the outcome */
	const char *result;			/* in the database's encoding, NULL for none */
	const char *error;
	bool		alone;			/* the call answers for deferred constraints, too */
	bool		was_final;		/* it was final before: nothing was called */
} OutcomeCall;

/*
 * Makes the call in a subtransaction, within the scope of the handler's role;
 * it gets the message as it is then.
 */
extern void outcome_call(OutcomeCall *call, HandlerOutcome *outcome);

#endif							/* OUTBOX_OUTCOME_HANDLER_H */
