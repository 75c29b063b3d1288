/*-------------------------------------------------------------------------
 *
 * hooks.h
 *	  Where the extension looks at commands of others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HOOKS_H
#define OUTBOX_HOOKS_H

/* Installs the hooks; from _PG_init */
extern void hooks_init(void);

#endif							/* OUTBOX_HOOKS_H */
