/*-------------------------------------------------------------------------
 *
 * safe_text.h
 *	  Texts from elsewhere, in buffers of a fixed size: what comes out is
 *	  always of the database's encoding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SAFE_TEXT_H
#define OUTBOX_SAFE_TEXT_H

/* Puts question marks for what isn't of the database's encoding */
extern void safe_text(char *text);

/* As strlcpy and snprintf, but cut between two characters */
extern void safe_text_copy(char *buffer, const char *text, size_t size);
extern void safe_text_printf(char *buffer, size_t size, const char *format,...)
			pg_attribute_printf(3, 4);

#endif							/* OUTBOX_SAFE_TEXT_H */
