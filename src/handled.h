/*-------------------------------------------------------------------------
 *
 * handled.h
 *	  A subscribed record on its way through its handler, and the parts of
 *	  that: what the handler gets, the reply, the inbox, dead records.
 *
 * All of it is called in a transaction that worker_begin began, by a consumer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HANDLED_H
#define OUTBOX_HANDLED_H

#include "bridge.h"
#include "subscription.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* What a reply repeats, for those who ask with Spring's request-reply */
#define HEADER_CORRELATION	"kafka_correlationId"

typedef enum HandledFate
{
	HANDLED_NOT,				/* not yet, or not now */
	HANDLED_NOW,
	HANDLED_BEFORE,				/* the inbox knows it */
	HANDLED_DEAD
} HandledFate;

typedef struct Handled
{
	Subscription *subscription;
	const BridgeRecord *record;
	Datum		argument;		/* what the handler gets; 0: made of the record */
	bool		has_id;			/* its header "id" is a UUID: */
	pg_uuid_t	id;
	int			attempts;		/* calls that failed for a passing reason */
	bool		alone;			/* see subscribed.h */
	bool		is_void;		/* its partition isn't read from there any more */
	HandledFate fate;
	HandlerOutcome outcome;
	MemoryContext context;		/* of the reply */
	bytea	   *reply;			/* the reply's value; NULL: none */
} Handled;

/* ---- subscribed.c ---- */

/* Begins with a record; its id is read from the headers */
extern void handled_init(Handled *handled, Subscription *subscription,
						 const BridgeRecord *record);

/*
 * Calls the handler, within the scope of its role, and sends the reply.  Fate
 * NOT: it is to be tried again, "attempts" says how often it was.
 */
extern void handled_call(Handled *handled);

/* Sends the reply again to what was handled before */
extern void handled_repeat(Handled *handled);

/* Its parts, without a subtransaction: may raise anything */
extern void handled_call_in(Handled *handled, HandlerOutcome *outcome);

/* ---- handled_together.c ---- */

/*
 * Handles the first of them, in order, in one subtransaction, and sets the fate
 * of each.  Returns how many; 0 if they have to be handled one by one, since
 * one of them raised something or did so lately: then nothing was done.
 */
extern int	handled_together(Handled *handled, int n);

/* ---- record_datum.c ---- */

/* The record as the composite outbox.record */
extern Datum record_datum(const Handled *handled);

/* Text of bytes that may be none: what isn't UTF-8 shows as \x and hex */
extern char *record_text(const char *bytes, int len);

/* The header of that name, NULL if there is none or it is null */
extern const BridgeHeader *record_header(const BridgeRecord *record, const char *name);

/* Its headers as an object, to show or to send; NULL if it has none */
extern Jsonb *record_headers(const BridgeRecord *record, bool to_send);

/* ---- reply.c ---- */

/* The value that tells the outcome, in the current memory context */
extern bytea *reply_value(const HandlerOutcome *outcome);

/* Sends handled->reply to the subscription's reply topic */
extern void reply_send(const Handled *handled);

/* ---- inbox.c ---- */

/* Finds those that were handled before: fate and reply */
extern void inbox_find(Handled *handled, int n);

/* Remembers those that were handled now */
extern void inbox_add(const Handled *handled, int n);

/* ---- dead_record.c ---- */

/* Keeps a record that is dead */
extern void dead_record_keep(const Handled *handled);

#endif							/* OUTBOX_HANDLED_H */
