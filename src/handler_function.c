/*-------------------------------------------------------------------------
 *
 * handler_function.c
 *	  Finding the function of a handler, and whether it may be called.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "compat.h"
#include "handler.h"

const char *
handler_function_problem(Oid function, Oid argument_type)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	const char *problem = NULL;

	if (!HeapTupleIsValid(tuple))
		return "it does not exist";
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION)
		problem = "it is no plain function";
	else if (proc->pronargs != 1 || proc->proargtypes.values[0] != argument_type)
		problem = psprintf("its only argument must be of type %s",
						   format_type_be_qualified(argument_type));
	else if (proc->proretset)
		problem = "it returns a set";
	else if (proc->prorettype != VOIDOID && proc->prorettype != TEXTOID &&
			 proc->prorettype != JSONBOID && proc->prorettype != JSONOID)
		problem = "it must return void, text, json or jsonb";
	ReleaseSysCache(tuple);
	return problem;
}

/* Whoever asks need not be allowed to use its schema, as LookupFuncName wants */
static Oid
find_function(const char *name, Oid argument_type)
{
	char	   *schema;
	char	   *function;

	DeconstructQualifiedName(outbox_qualified_name(name), &schema, &function);
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(function),
						   PointerGetDatum(buildoidvector(&argument_type, 1)),
						   ObjectIdGetDatum(get_namespace_oid(schema, true)));
}

const char *
handler_resolve(Handler *handler, Oid argument_type)
{
	const char *problem;

	handler->role = get_role_oid(handler->role_name, true);
	if (!OidIsValid(handler->role))
		return psprintf("role \"%s\" does not exist", handler->role_name);
	handler->oid = find_function(handler->function, argument_type);
	if (!OidIsValid(handler->oid))
		return psprintf("function %s(%s) does not exist", handler->function,
						format_type_be_qualified(argument_type));
	problem = handler_function_problem(handler->oid, argument_type);
	if (problem != NULL)
		return psprintf("function %s can't be called: %s", handler->function, problem);
	if (!outbox_may_use_schema(get_func_namespace(handler->oid), handler->role))
		return psprintf("role \"%s\" may not use the schema of function %s",
						handler->role_name, handler->function);
	if (!outbox_may_execute(handler->oid, handler->role))
		return psprintf("role \"%s\" may not execute function %s",
						handler->role_name, handler->function);
	handler->result_type = get_func_rettype(handler->oid);
	handler->looked_up = 0;
	return NULL;
}

void
handler_lock(const Handler *handler)
{
	LockDatabaseObject(ProcedureRelationId, handler->oid, 0, AccessShareLock);
	LockSharedObject(AuthIdRelationId, handler->role, 0, AccessShareLock);
}

const char *
handler_ready(Handler *handler, Oid argument_type)
{
	const char *trouble;

	if (handler->ready_in == outbox_local_xid())
		return NULL;
	trouble = handler_resolve(handler, argument_type);
	if (trouble != NULL)
		return trouble;
	handler_lock(handler);
	trouble = handler_resolve(handler, argument_type);
	if (trouble == NULL)
		handler->ready_in = outbox_local_xid();
	return trouble;
}
