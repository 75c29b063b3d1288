/*-------------------------------------------------------------------------
 *
 * identity.h
 *	  Knows a log from its copies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_IDENTITY_H
#define OUTBOX_IDENTITY_H

/* NULL, or why the workers of this database rest.  Needs SPI. */
extern const char *identity_check(void);

/*
 * The rows that this transaction inserts into the log are from the log itself,
 * and don't park the database.
 */
extern void log_guard_expect_own(void);

#endif							/* OUTBOX_IDENTITY_H */
