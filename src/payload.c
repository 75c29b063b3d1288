/*-------------------------------------------------------------------------
 *
 * payload.c
 *	  Payloads for people to read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "capture.h"
#include "compat.h"

static text *utf8_to_server(const char *utf8, int len);

PG_FUNCTION_INFO_V1(outbox_payload_text);

/* NULL unless the bytes are UTF-8 that the database's encoding can show */
Datum
outbox_payload_text(PG_FUNCTION_ARGS)
{
	bytea	   *payload = PG_GETARG_BYTEA_PP(0);
	text	   *shown = payload_text(VARDATA_ANY(payload), VARSIZE_ANY_EXHDR(payload));

	if (shown == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(shown);
}

text *
payload_text(const char *bytes, int len)
{
	if (!pg_verify_mbstr(PG_UTF8, bytes, len, true))
		return NULL;
	if (GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII)
		return cstring_to_text_with_len(bytes, len);
	return utf8_to_server(bytes, len);
}

/* NULL if that can't be done without loss */
static text *
utf8_to_server(const char *utf8, int len)
{
	Oid			conversion = FindDefaultConversionProc(PG_UTF8, GetDatabaseEncoding());
	Size		size = (Size) len * MAX_CONVERSION_GROWTH + 1;
	char	   *converted;
	int			done;

	if (!OidIsValid(conversion) || size > MaxAllocSize)
		return NULL;
	converted = palloc(size);
	done = pg_do_encoding_conversion_buf(conversion, PG_UTF8, GetDatabaseEncoding(),
										 (unsigned char *) unconstify(char *, utf8), len,
										 (unsigned char *) converted, (int) size, true);
	return done == len ? cstring_to_text(converted) : NULL;
}

/*
 * A text in the database's encoding; what that has no character for becomes a
 * question mark.  The conversions of core stop at such a character, having
 * told how far they came.
 */
char *
text_to_database(const char *utf8)
{
	int			encoding = GetDatabaseEncoding();
	int			len = strlen(utf8);
	Size		size = (Size) len * MAX_CONVERSION_GROWTH + 1;
	Oid			conversion;
	char	   *result;
	char	   *out;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return unconstify(char *, utf8);
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	result = out = palloc(size);
	while (len > 0)
	{
		int			done = OidIsValid(conversion) ?
			pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding,
										  (unsigned char *) unconstify(char *, utf8),
										  len, (unsigned char *) out,
										  result + size - out, true) : 0;

		out += strlen(out);
		utf8 += done;
		len -= done;
		if (len > 0)
		{
			int			skip = Min(pg_utf_mblen((const unsigned char *) utf8), len);

			*out++ = '?';
			*out = '\0';
			utf8 += skip;
			len -= skip;
		}
	}
	*out = '\0';
	return result;
}
