/*-------------------------------------------------------------------------
 *
 * caller.c
 *	  Telling a SECURITY DEFINER function who called it.
 *
 * Such a function can't find that out by itself: the session's user, or the
 * role it has set, may be another's than whose function made the call, and a
 * handler registered for that one would run with rights its author hasn't got.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"

#include "capture.h"
#include "compat.h"
#include "handler.h"
#include "outbox.h"
#include "relation.h"
#include "subscription.h"

/* Whom outbox_with_caller is at work for; NULL: nobody */
static const char *calling_for = NULL;

/* Its name for the caller, as the first argument, and its own ones */
static Oid
find_internal(Oid function, int *nargs)
{
	Oid		   *types;
	Oid			all[FUNC_MAX_ARGS];
	char	   *name = psprintf("%s_as", get_func_name(function));

	(void) get_func_signature(function, &types, nargs);
	if (*nargs + 1 > FUNC_MAX_ARGS)
		elog(ERROR, "too many arguments");
	all[0] = NAMEOID;
	memcpy(all + 1, types, *nargs * sizeof(Oid));
	return LookupFuncName(list_make2(makeString(OUTBOX_SCHEMA), makeString(name)),
						  *nargs + 1, all, false);
}

PG_FUNCTION_INFO_V1(outbox_with_caller);

/*
 * outbox.f(...) as outbox.f_as(caller, ...), which nobody else may call: no
 * privilege is asked for when a function is called like this, and the function
 * asks outbox.check_caller whether it was, for whoever has been granted all
 * functions of the schema.
 */
Datum
outbox_with_caller(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(call, FUNC_MAX_ARGS);
	FmgrInfo	flinfo;
	NameData	caller;
	const char *before = calling_for;
	int			nargs;
	Oid			internal = find_internal(fcinfo->flinfo->fn_oid, &nargs);
	Datum		result;

	namestrcpy(&caller, GetUserNameFromId(GetUserId(), false));
	fmgr_info(internal, &flinfo);
	InitFunctionCallInfoData(*call, &flinfo, nargs + 1, fcinfo->fncollation, NULL, NULL);
	call->args[0].value = NameGetDatum(&caller);
	call->args[0].isnull = false;
	memcpy(&call->args[1], fcinfo->args, nargs * sizeof(NullableDatum));
	PG_TRY();
	{
		calling_for = NameStr(caller);
		result = FunctionCallInvoke(call);
	}
	PG_FINALLY();
	{
		calling_for = before;
	}
	PG_END_TRY();
	fcinfo->isnull = call->isnull;
	return result;
}

PG_FUNCTION_INFO_V1(outbox_check_caller);

/* outbox.check_caller(caller): raises unless outbox_with_caller said so */
Datum
outbox_check_caller(PG_FUNCTION_ARGS)
{
	if (calling_for == NULL || PG_ARGISNULL(0) ||
		strcmp(calling_for, NameStr(*PG_GETARG_NAME(0))) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only the extension itself may call this function")));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_check_handler);

/*
 * outbox.check_handler(caller, function, argument): raises unless the caller
 * may have the function as a handler; returns its qualified name.
 */
Datum
outbox_check_handler(PG_FUNCTION_ARGS)
{
	char	   *caller = NameStr(*PG_GETARG_NAME(0));
	Oid			role = get_role_oid(caller, false);
	Oid			function = PG_GETARG_OID(1);
	Oid			argument = PG_GETARG_OID(2);
	const char *problem = handler_function_problem(function, argument);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s can't be a handler", format_procedure(function)),
				 errdetail("It has to be a function of one argument of type %s that returns"
						   " void, text, json or jsonb; %s.",
						   format_type_be_qualified(argument), problem)));
	if (!outbox_may_use_schema(get_func_namespace(function), role) ||
		!outbox_may_execute(function, role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", format_procedure(function)),
				 errdetail("Role \"%s\", as whom it would run, may not execute it.", caller)));
	PG_RETURN_TEXT_P(cstring_to_text(
									 quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
																get_func_name(function))));
}

PG_FUNCTION_INFO_V1(outbox_check_topic_privilege);

/* outbox.check_topic_privilege(caller, topic, privilege): raises unless it may */
Datum
outbox_check_topic_privilege(PG_FUNCTION_ARGS)
{
	char	   *caller = NameStr(*PG_GETARG_NAME(0));
	Oid			role = get_role_oid(caller, false);
	char	   *topic = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *privilege = text_to_cstring(PG_GETARG_TEXT_PP(2));

	if (strcmp(privilege, "send") == 0)
		topic_check_send(topic, role);
	else if (!topic_may_subscribe(topic, role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for topic \"%s\"", topic),
				 errdetail("Role \"%s\" may not subscribe to it.", caller),
				 errhint("A superuser can allow it: SELECT outbox.grant_topic('%s', %s, 'subscribe').",
						 topic, quote_literal_cstr(quote_identifier(caller)))));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(outbox_subscription_trouble);

/*
 * outbox.subscription_trouble(topic, handler, role, reply_topic): NULL, or why
 * the subscription can't be handled now
 */
Datum
outbox_subscription_trouble(PG_FUNCTION_ARGS)
{
	Subscription subscription = {0};
	const char *trouble;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_NULL();
	subscription.topic = text_to_cstring(PG_GETARG_TEXT_PP(0));
	subscription.handler.function = text_to_cstring(PG_GETARG_TEXT_PP(1));
	subscription.handler.role_name = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (!PG_ARGISNULL(3))
		subscription.reply_topic = text_to_cstring(PG_GETARG_TEXT_PP(3));
	trouble = subscription_trouble(&subscription);
	if (trouble == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(trouble));
}
