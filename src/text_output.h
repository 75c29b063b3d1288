/*-------------------------------------------------------------------------
 *
 * text_output.h
 *	  A value as text, whatever the session's settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TEXT_OUTPUT_H
#define OUTBOX_TEXT_OUTPUT_H

#include "fmgr.h"
#include "utils/uuid.h"

#define UUID_TEXT_LEN 36

typedef enum TextKind
{
	TEXT_VARLENA,				/* the bytes of a text or json */
	TEXT_BYTEA,
	TEXT_UUID,
	TEXT_INT2,
	TEXT_INT4,
	TEXT_INT8,
	TEXT_FLOAT4,
	TEXT_FLOAT8,
	TEXT_FUNCTION,				/* which no setting changes */
	TEXT_FUNCTION_FIXED			/* to be called under fixed settings */
} TextKind;

/* How to write the values of a type */
typedef struct TextOutput
{
	TextKind	kind;
	FmgrInfo	function;
	char		buffer[UUID_TEXT_LEN + 1];
} TextOutput;

/* type is not a domain; what the function remembers goes into context */
extern void text_output_init(TextOutput *output, Oid type, MemoryContext context);

/*
 * The value as its output function writes it under TimeZone UTC, ISO dates,
 * IntervalStyle postgres, hex bytea and shortest floats, in the database's
 * encoding.  Good until the next call, or until the value or the current
 * memory context goes; not terminated.
 */
extern const char *text_output(TextOutput *output, Datum value, int *len);

/* Writes UUID_TEXT_LEN characters, not terminated */
extern void uuid_text(const pg_uuid_t *uuid, char *out);

/* Calls a function of one argument under those settings */
extern Datum call_under_fixed_settings(FmgrInfo *function, Datum value);

#endif							/* OUTBOX_TEXT_OUTPUT_H */
