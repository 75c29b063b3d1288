/*-------------------------------------------------------------------------
 *
 * safe_text.c
 *	  Texts from elsewhere, in buffers of a fixed size.
 *
 * What a broker, the C library or librdkafka says is in any encoding, and may
 * have been cut anywhere.  A conversion could raise an ERROR, and would need a
 * transaction; so bytes that don't fit are merely replaced.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "safe_text.h"

static void mend(char *text, bool cut);

/* cut: the end may be a part of a character, which goes without a trace */
static void
mend(char *text, bool cut)
{
	int			left = strlen(text);

	for (;;)
	{
		int			valid = pg_encoding_verifymbstr(GetDatabaseEncoding(), text, left);

		if (valid == left)
			return;
		if (cut && left - valid < MAX_MULTIBYTE_CHAR_LEN)
		{
			text[valid] = '\0';
			return;
		}
		text[valid] = '?';
		text += valid + 1;
		left -= valid + 1;
	}
}

void
safe_text(char *text)
{
	mend(text, false);
}

void
safe_text_copy(char *buffer, const char *text, size_t size)
{
	mend(buffer, strlcpy(buffer, text, size) >= size);
}

void
safe_text_printf(char *buffer, size_t size, const char *format,...)
{
	va_list		args;
	int			wanted;

	va_start(args, format);
	wanted = vsnprintf(buffer, size, format, args);
	va_end(args);
	mend(buffer, wanted < 0 || (size_t) wanted >= size);
}
