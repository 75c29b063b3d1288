# Who may do what: nothing is granted to PUBLIC, an application role needs no
# right in schema outbox, and the grants the README gives are enough.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_outbox_node('main', extension => ['postgres']);

# Runs SQL as a role; returns (exit status, stdout, stderr).
sub as_role
{
	my ($role, $sql) = @_;
	my ($out, $err) = ('', '');
	my $rc = $node->psql('postgres', "SET SESSION AUTHORIZATION $role; $sql",
		stdout => \$out, stderr => \$err);
	return ($rc, $out, $err);
}

sub allowed
{
	my ($role, $sql, $name) = @_;
	my ($rc, $out, $err) = as_role($role, $sql);
	is($rc, 0, $name) or diag($err);
	return $out;
}

sub refused
{
	my ($role, $sql, $pattern, $name) = @_;
	my ($rc, $out, $err) = as_role($role, $sql);
	isnt($rc, 0, $name);
	like($err, $pattern, "$name: why");
	return;
}

# ---------- PUBLIC has nothing ----------

my $acl = sub {
	my ($table, $column, $condition) = @_;
	return $node->safe_psql('postgres', qq{
		SELECT count(*) FROM $table AS o,
			LATERAL aclexplode(coalesce($column, acldefault(
				CASE '$table' WHEN 'pg_proc' THEN 'f' WHEN 'pg_type' THEN 'T'
					WHEN 'pg_class' THEN 'r' ELSE 'n' END::"char", 10))) AS a
		WHERE a.grantee = 0 AND $condition});
};
is($acl->('pg_proc', 'proacl', "pronamespace = 'outbox'::regnamespace"),
	'0', 'no function is for PUBLIC');
is($acl->('pg_class', 'relacl', "relnamespace = 'outbox'::regnamespace AND relkind <> 'S'"),
	'0', 'no table or view is for PUBLIC');
is( $acl->(
		'pg_type', 'typacl',
		"typnamespace = 'outbox'::regnamespace AND typelem = 0"),
	'0',
	'no type is for PUBLIC');
is($acl->('pg_namespace', 'nspacl', "nspname = 'outbox'"),
	'0', 'the schema is not for PUBLIC');
is( $node->safe_psql(
		'postgres', q{
	SELECT count(*) FROM pg_proc
	WHERE pronamespace = 'outbox'::regnamespace AND prosecdef
		AND NOT coalesce(array_to_string(proconfig, ',') LIKE 'search_path=pg_catalog, pg_temp%', false)}),
	'0',
	'every SECURITY DEFINER function fixes its search_path');

# ---------- the application ----------

$node->safe_psql('postgres', q{
	CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; CREATE ROLE sender LOGIN;
	CREATE ROLE operator LOGIN; CREATE ROLE team; CREATE ROLE member LOGIN IN ROLE team;
	CREATE SCHEMA shop AUTHORIZATION owner;
	SET ROLE owner;
	CREATE TABLE shop.orders (id int PRIMARY KEY, note text);
	GRANT USAGE ON SCHEMA shop TO app; GRANT INSERT ON shop.orders TO app;
	RESET ROLE;
	SELECT outbox.attach('shop.orders', 'orders')});

refused('app', "INSERT INTO shop.orders VALUES (0)",
	qr/permission denied for topic "orders".*outbox\.grant_topic\('orders', 'owner', 'send'\)/s,
	'the owner of the table needs the topic');
$node->safe_psql('postgres', "SELECT outbox.grant_topic('orders', 'owner', 'send')");
allowed('app', "INSERT INTO shop.orders VALUES (1)", 'INSERT on the table is enough');
is( $node->safe_psql('postgres', "SELECT count(*) FROM outbox.message"),
	'1', 'and the message is there');
foreach my $relation (qw(message log log_0 stat topic worker topic_config topic_grant))
{
	refused('app', "TABLE outbox.$relation", qr/permission denied/,
		"the application can't read outbox.$relation");
}
refused('app', "SELECT outbox.send('orders', 'x'::text)",
	qr/permission denied for schema outbox/, 'nor send by hand');
refused('owner', "SELECT outbox.attach('shop.orders', 'other')",
	qr/permission denied for schema outbox/, 'nor can the owner attach');

# ---------- topics ----------

$node->safe_psql('postgres', "SELECT outbox.revoke_topic('orders', 'owner', 'send')");
refused('app', "INSERT INTO shop.orders VALUES (2)",
	qr/permission denied for topic "orders"/, 'a topic can be taken back');
$node->safe_psql('postgres', "SELECT outbox.grant_topic('ord*', 'owner', 'subscribe')");
refused('app', "INSERT INTO shop.orders VALUES (2)",
	qr/permission denied for topic/, 'subscribe is another privilege');
$node->safe_psql('postgres', "SELECT outbox.grant_topic('ord*', 'owner', 'send')");
allowed('app', "INSERT INTO shop.orders VALUES (2)", 'a prefix grants');
$node->safe_psql('postgres', "ALTER TABLE shop.orders OWNER TO postgres");
allowed('app', "INSERT INTO shop.orders VALUES (3)", 'a superuser passes');

# ---------- a sender ----------

$node->safe_psql('postgres', q{
	GRANT USAGE ON SCHEMA outbox TO sender, team;
	GRANT EXECUTE ON FUNCTION
		outbox.send(text, jsonb, text, jsonb, timestamptz),
		outbox.send(text, text, text, jsonb, timestamptz),
		outbox.send(text, bytea, text, jsonb, timestamptz) TO sender, team;
	SELECT outbox.grant_topic('mail', 'sender', 'send'), outbox.grant_topic('chat', 'team', 'send')});
allowed('sender', "SELECT outbox.send('mail', '{}'::jsonb), outbox.send('mail', 'x'::text),
	outbox.send('mail', 'x'::bytea)", 'a sender sends');
refused('sender', "SELECT outbox.send('chat', 'x'::text)",
	qr/permission denied for topic "chat"/, 'but not to any topic');
allowed('member', "SELECT outbox.send('chat', 'x'::text)", 'a member of a role has its topics');
refused('sender', "TABLE outbox.message", qr/permission denied/, 'a sender reads nothing');
refused('sender', "SELECT outbox.resend('00000000-0000-0000-0000-000000000000')",
	qr/permission denied/, 'nor operates');

# The caller counts, not who is logged in.
$node->safe_psql('postgres', q{
	CREATE FUNCTION shop.mail() RETURNS uuid LANGUAGE sql SECURITY DEFINER
		AS $$SELECT outbox.send('mail', 'x'::text)$$;
	ALTER FUNCTION shop.mail() OWNER TO sender;
	GRANT USAGE ON SCHEMA shop TO sender});
allowed('app', "SELECT shop.mail()", 'a SECURITY DEFINER function sends as its owner');

# ---------- an operator, with the README's grants ----------

$node->safe_psql('postgres', q{
	CREATE ROLE monitor LOGIN; CREATE ROLE reader LOGIN;
	GRANT USAGE ON SCHEMA outbox TO operator, monitor, reader;
	GRANT EXECUTE ON FUNCTION outbox.set_topic, outbox.create_topic, outbox.resend(uuid),
		outbox.grant_topic, outbox.revoke_topic, outbox.adopt TO operator;
	GRANT SELECT ON outbox.topic_request, outbox.topic_config, outbox.topic_grant TO operator;
	GRANT SELECT ON outbox.stat, outbox.worker, outbox.topic TO monitor, operator;
	GRANT EXECUTE ON FUNCTION outbox.counters, outbox.backlog, outbox.worker_status,
		outbox.message_time TO monitor, operator;
	GRANT SELECT ON outbox.message TO reader;
	GRANT EXECUTE ON FUNCTION outbox.payload_text, outbox.message_time, outbox.message_id_at TO reader;
	GRANT EXECUTE ON FUNCTION outbox.change_status TO operator});
allowed('monitor', "TABLE outbox.$_", "a monitor reads outbox.$_")
  foreach (qw(stat topic worker));
refused('monitor', 'TABLE outbox.message', qr/permission denied/, 'but no payload');
allowed('reader', 'TABLE outbox.message', 'a reader reads the messages');
allowed('operator', "TABLE outbox.topic_request", 'an operator reads the requests');
allowed('operator', "SELECT outbox.set_topic('orders', 'results')", 'and sets topics');
allowed('operator', "SELECT outbox.create_topic('orders')", 'and asks for topics');
allowed('operator', "SELECT outbox.grant_topic('x', 'app', 'send')", 'and grants');
allowed('operator', "SELECT outbox.adopt()", 'and adopts');
my $missing = $node->safe_psql('postgres', "SELECT outbox.send('missing', 'x'::text)");
refused('operator', "SELECT outbox.resend('$missing')", qr/is NEW/, 'and resends');
refused('operator', "UPDATE outbox.log SET status = 'C'",
	qr/permission denied/, 'but has no way around the functions');
refused('operator', "SELECT outbox.change_status('$missing', 'NEW', 'CONFIRMED')",
	qr/permission denied/, 'nor through one of them');
refused('operator', "SHOW outbox.kafka_config", qr/permission denied|must be/,
	"and can't see the client's configuration");

# ---------- an attacker's search_path ----------

# Functions and operators of the same names, in front of the system's and of
# ours, that would run with the rights of the extension's owner.
$node->safe_psql('postgres', q{
	CREATE SCHEMA evil AUTHORIZATION operator;
	SET SESSION AUTHORIZATION operator;
	CREATE TABLE evil.victims (who text);
	GRANT INSERT ON evil.victims TO PUBLIC; GRANT USAGE ON SCHEMA evil TO PUBLIC;
	CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql
		AS $$INSERT INTO evil.victims VALUES (current_user); SELECT $1$$;
	CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql
		AS $$INSERT INTO evil.victims VALUES (current_user); SELECT now()$$;
	CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE plpgsql
		AS $$BEGIN INSERT INTO evil.victims VALUES (current_user); RETURN true; END$$;
	CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq)});
allowed('operator', q{
	SET search_path = evil, pg_temp, pg_catalog;
	SELECT outbox.set_topic('evil', 'results');
	SELECT outbox.create_topic('evil');
	SELECT outbox.grant_topic('evil', 'app', 'send');
	SELECT outbox.revoke_topic('evil', 'app', 'send')}, 'functions under a hostile search_path');
is($node->safe_psql('postgres', "SELECT count(*) FROM evil.victims WHERE who <> 'operator'"),
	'0', 'no function of the attacker ran as somebody else');

$node->stop;
done_testing();
