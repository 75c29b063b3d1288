/*-------------------------------------------------------------------------
 *
 * text_output.c
 *	  A value as text, whatever the session's settings.
 *
 * The common types are written here; the output functions of the others see
 * fixed settings, unless it is known that they look at none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/date.h"
#include "utils/float.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"

#include "compat.h"
#include "text_output.h"

static TextKind text_kind(Oid type);
static const char *hex_text(Datum value, int *len);
static int	float_text(double value, bool single, char *out);

static TextKind
text_kind(Oid type)
{
	switch (type)
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
			return TEXT_VARLENA;
		case BYTEAOID:
			return TEXT_BYTEA;
		case UUIDOID:
			return TEXT_UUID;
		case INT2OID:
			return TEXT_INT2;
		case INT4OID:
			return TEXT_INT4;
		case INT8OID:
			return TEXT_INT8;
		case FLOAT4OID:
			return TEXT_FLOAT4;
		case FLOAT8OID:
			return TEXT_FLOAT8;
		case BOOLOID:
		case NUMERICOID:
		case JSONBOID:
		case NAMEOID:
		case CHAROID:
		case OIDOID:
		case XMLOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
		case TSVECTOROID:
		case PG_LSNOID:
			return TEXT_FUNCTION;
		default:
			return get_typtype(type) == TYPTYPE_ENUM ? TEXT_FUNCTION : TEXT_FUNCTION_FIXED;
	}
}

void
text_output_init(TextOutput *output, Oid type, MemoryContext context)
{
	Oid			function;
	bool		is_varlena;

	output->kind = text_kind(type);
	getTypeOutputInfo(type, &function, &is_varlena);
	fmgr_info_cxt(function, &output->function, context);
}

/* What bytea's output function writes if bytea_output is hex */
static const char *
hex_text(Datum value, int *len)
{
	bytea	   *bytes = DatumGetByteaPP(value);
	Size		size = VARSIZE_ANY_EXHDR(bytes);
	char	   *text = palloc(2 + size * 2);

	text[0] = '\\';
	text[1] = 'x';
	*len = 2 + (int) hex_encode(VARDATA_ANY(bytes), size, text + 2);
	return text;
}

void
uuid_text(const pg_uuid_t *uuid, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = digits[uuid->data[i] >> 4];
		*out++ = digits[uuid->data[i] & 0xF];
	}
}

static int
float_text(double value, bool single, char *out)
{
	if (isnan(value))
		strcpy(out, "NaN");
	else if (isinf(value))
		strcpy(out, value > 0 ? "Infinity" : "-Infinity");
	else if (single)
		return float_to_shortest_decimal_bufn((float) value, out);
	else
		return double_to_shortest_decimal_bufn(value, out);
	return strlen(out);
}

const char *
text_output(TextOutput *output, Datum value, int *len)
{
	char	   *text = output->buffer;

	switch (output->kind)
	{
		case TEXT_VARLENA:
			{
				struct varlena *bytes = PG_DETOAST_DATUM_PACKED(value);

				*len = VARSIZE_ANY_EXHDR(bytes);
				return VARDATA_ANY(bytes);
			}
		case TEXT_BYTEA:
			return hex_text(value, len);
		case TEXT_UUID:
			uuid_text(DatumGetUUIDP(value), text);
			*len = UUID_TEXT_LEN;
			return text;
		case TEXT_INT2:
			*len = pg_ltoa(DatumGetInt16(value), text);
			return text;
		case TEXT_INT4:
			*len = pg_ltoa(DatumGetInt32(value), text);
			return text;
		case TEXT_INT8:
			*len = pg_lltoa(DatumGetInt64(value), text);
			return text;
		case TEXT_FLOAT4:
			*len = float_text(DatumGetFloat4(value), true, text);
			return text;
		case TEXT_FLOAT8:
			*len = float_text(DatumGetFloat8(value), false, text);
			return text;
		case TEXT_FUNCTION:
			text = OutputFunctionCall(&output->function, value);
			break;
		case TEXT_FUNCTION_FIXED:
			text = DatumGetCString(call_under_fixed_settings(&output->function, value));
			break;
	}
	*len = strlen(text);
	return text;
}

/*
 * The variables are set and not the settings: that costs nothing, and nobody
 * else runs in between.  It is done for one call at a time, for the function
 * may be anyone's, with settings of its own to restore.
 */
Datum
call_under_fixed_settings(FmgrInfo *function, Datum value)
{
	static pg_tz *utc = NULL;
	int			old_date_style = DateStyle;
	int			old_interval_style = IntervalStyle;
	int			old_bytea_output = bytea_output;
	int			old_extra_float_digits = extra_float_digits;
	pg_tz	   *old_timezone = session_timezone;
	Datum		result = (Datum) 0;

	if (utc == NULL)
		utc = pg_tzset("UTC");
	PG_TRY();
	{
		DateStyle = USE_ISO_DATES;
		IntervalStyle = INTSTYLE_POSTGRES;
		bytea_output = BYTEA_OUTPUT_HEX;
		extra_float_digits = 1;
		session_timezone = utc;
		result = FunctionCall1(function, value);
	}
	PG_FINALLY();
	{
		DateStyle = old_date_style;
		IntervalStyle = old_interval_style;
		bytea_output = old_bytea_output;
		extra_float_digits = old_extra_float_digits;
		session_timezone = old_timezone;
	}
	PG_END_TRY();
	return result;
}
