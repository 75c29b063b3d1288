/*-------------------------------------------------------------------------
 *
 * result.h
 *	  Results: records on a result topic that say what became of a message.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RESULT_H
#define OUTBOX_RESULT_H

#include "bridge.h"
#include "outbox.h"
#include "utils/uuid.h"

typedef struct MessageResult
{
	pg_uuid_t	id;				/* of the message */
	MessageStatus outcome;		/* STATUS_CONFIRMED or STATUS_FAILED */
	const char *value;			/* the record's value; UTF-8, shortened */
	const char *error;			/* of a FAILED one; UTF-8, NULL for none */
} MessageResult;

/*
 * Understands a record.  Returns NULL, or what is wrong with it: a constant
 * that quotes nothing of the record.  Never raises an ERROR but for lack of
 * memory; allocates in the current memory context, a bounded amount of which
 * is kept.
 */
extern const char *result_parse(const BridgeRecord *record, MessageResult *result);

/* A UUID in its text form; quotes around it, as of a JSON string, don't count */
extern bool uuid_parse(const char *text, int len, pg_uuid_t *uuid);

#endif							/* OUTBOX_RESULT_H */
