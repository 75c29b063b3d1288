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
	GRANT SELECT ON outbox.topic_request TO operator;
	GRANT SELECT ON outbox.stat, outbox.worker, outbox.topic, outbox.subscription TO monitor, operator;
	GRANT EXECUTE ON FUNCTION outbox.counters, outbox.backlog, outbox.worker_status,
		outbox.storage, outbox.subscription_trouble TO monitor, operator;
	GRANT SELECT ON outbox.message TO reader;
	GRANT EXECUTE ON FUNCTION outbox.payload_text, outbox.message_time TO reader;
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

# ---------- what others change ----------

# A session remembers what a role may; news of a change must reach it.
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe('SET SESSION AUTHORIZATION sender');
my $try = sub {
	my ($out) = $session->query(q(SELECT length(outbox.send('mail', 'x'::text)::text)));
	return $out;
};
is($try->(), '36', 'a session sends');
$node->safe_psql('postgres', "SELECT outbox.revoke_topic('mail', 'sender', 'send')");
isnt($try->(), '36', 'not after the topic was revoked');
$node->safe_psql('postgres', "SELECT outbox.grant_topic('mail', 'team', 'send')");
isnt($try->(), '36', 'nor when it is granted to a role it is no member of');
$node->safe_psql('postgres', 'GRANT team TO sender');
is($try->(), '36', 'but as a member');
$node->safe_psql('postgres', 'REVOKE team FROM sender');
isnt($try->(), '36', 'not any more after that');
$session->query("BEGIN; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1");
$node->safe_psql('postgres', "SELECT outbox.grant_topic('mail', 'sender', 'send')");
is($try->(), '36', 'the grants are read as they are, and not as an old snapshot shows them');
$session->query('ROLLBACK');
$session->quit;

$node->safe_psql('postgres', q{
	CREATE ROLE outsider LOGIN NOINHERIT IN ROLE team;
	CREATE TABLE shop.parts (id int) PARTITION BY LIST (id);
	CREATE TABLE shop.part1 PARTITION OF shop.parts FOR VALUES IN (1);
	ALTER TABLE shop.part1 OWNER TO owner;
	GRANT INSERT ON shop.parts TO app;
	SELECT outbox.attach('shop.parts', 'parts')});
refused('outsider', "SELECT outbox.send('chat', 'x'::text)", qr/permission denied/,
	'a member that does not inherit has nothing');
refused('app', 'INSERT INTO shop.parts VALUES (1)', qr/permission denied for topic "parts"/,
	'of a partitioned table the partition\'s owner counts');
$node->safe_psql('postgres', "SELECT outbox.grant_topic('parts', 'owner', 'send')");
allowed('app', 'INSERT INTO shop.parts VALUES (1)', 'it may with the topic granted');
refused('app', q{SELECT outbox.grant_topic('*', 'app', 'send')}, qr/permission denied/,
	'nobody grants topics to himself');

# ---------- the grants that the README gives ----------

# Just as they stand there, to roles that have nothing else.
my ($section) = slurp_file("$FindBin::RealBin/../README.md") =~ /^## Who needs which rights\n(.*?)^## /ms;
my @grants = $section =~ /```sql\n(.*?)```/sg;
my %roles = map { $_ => 1 } join('', @grants) =~ /\b(shop_owner|shop_sender|stock_owner|outbox_\w+)\b/g;
is(join(' ', sort keys %roles), 'outbox_monitor outbox_operator outbox_reader shop_owner shop_sender stock_owner',
	'the README names the roles');
$node->safe_psql('postgres', "CREATE ROLE $_ LOGIN") foreach (sort keys %roles);
$node->safe_psql('postgres', $_) foreach (@grants);
$node->safe_psql('postgres',
	'CREATE SCHEMA own AUTHORIZATION shop_owner; GRANT USAGE ON SCHEMA own TO app;
	CREATE SCHEMA stock AUTHORIZATION stock_owner');

allowed('shop_owner', q{
	CREATE TABLE own.orders (id int);
	SELECT outbox.attach('own.orders', 'orders');
	SELECT outbox.detach('own.orders');
	SELECT outbox.attach('own.orders', 'orders');
	CREATE TRIGGER by_hand AFTER UPDATE ON own.orders
		FOR EACH ROW EXECUTE FUNCTION outbox.capture('topic', 'orders');
	GRANT INSERT ON own.orders TO app}, 'the owner of a table attaches it');
allowed('app', 'INSERT INTO own.orders VALUES (1)', 'and what others insert is captured');
allowed('shop_sender', q{
	SELECT outbox.send('shop.mail', '{}'::jsonb), outbox.send('shop.mail', 'x'::text),
		outbox.send('shop.chat', 'x'::bytea)}, 'the sender sends');
refused('shop_sender', q{SELECT outbox.send('other', 'x'::text)}, qr/permission denied for topic/,
	'but not to any topic');
refused('shop_owner', q{SELECT outbox.set_topic('orders')},
	qr/topic "orders" was set by role "operator"/, 'what another role has set stays');
$node->safe_psql('postgres', q{DELETE FROM outbox.topic_config WHERE topic = 'orders'});
allowed('shop_owner', q{
	CREATE FUNCTION own.confirm(m outbox.message) RETURNS void LANGUAGE sql
		AS $$UPDATE own.orders SET id = id$$;
	SELECT outbox.set_topic('orders', 'results', on_confirmed => 'own.confirm(outbox.message)')},
	'the owner has a function called with its results');
refused('shop_owner', qq{SELECT outbox.set_topic('chat', '$_->[0]', $_->[1] => 'own.confirm(outbox.message)')},
	qr/permission denied for topic "chat"/, "but sees no other topic's messages through $_->[1]")
  foreach ([ 'results', 'on_confirmed' ], [ 'results', 'on_failed' ], [ 'results', 'on_dead' ]);
allowed('stock_owner', q{
	CREATE FUNCTION stock.reserve(r outbox.record) RETURNS void LANGUAGE sql AS $$SELECT$$;
	SELECT outbox.subscribe('orders', 'stock.reserve(outbox.record)', reply_topic => 'order-results');
	SELECT outbox.unsubscribe('orders');
	SELECT outbox.subscribe('orders', 'stock.reserve(outbox.record)')}, 'the subscriber subscribes');
refused('stock_owner', q{SELECT outbox.subscribe('chat', 'stock.reserve(outbox.record)')},
	qr/permission denied for topic "chat".*'subscribe'/s, 'but not to any topic');
refused('stock_owner', q{SELECT outbox.subscribe('orders', 'stock.reserve(outbox.record)', 'chat')},
	qr/permission denied for topic "chat".*'send'/s, 'nor does it reply to any');
is(allowed('outbox_monitor', "TABLE outbox.$_", "monitoring reads outbox.$_") ne '', 1, 'and sees something')
  foreach (qw(stat worker topic subscription));
refused('outbox_monitor', $_, qr/permission denied/, "but not: $_")
  foreach ('TABLE outbox.message', 'TABLE outbox.dead_record', 'TABLE outbox.handler_call',
	'TABLE outbox.held_key',
	'SELECT payload FROM outbox.log', 'SELECT payload FROM outbox.log_0');
allowed('outbox_reader', "TABLE outbox.$_", "the reader reads outbox.$_")
  foreach (qw(message dead_record handler_call));
my $id = $node->safe_psql('postgres', q{
	UPDATE outbox.log SET status = 'S' WHERE id = (SELECT min(id::text)::uuid FROM outbox.message)
	RETURNING id});
allowed('outbox_operator', qq{
	SELECT outbox.set_topic('shop.orders', 'shop.results'), outbox.create_topic('shop.orders'),
		outbox.resend('$id'), outbox.grant_topic('x', 'app', 'send'),
		outbox.revoke_topic('x', 'app', 'send'), outbox.adopt();
	SELECT outbox.replay('orders'), outbox.pause('orders'), outbox.resume('orders'),
		outbox.resend('orders', '-infinity', 'infinity');
	TABLE outbox.topic_request; TABLE outbox.held_key}, 'the operator operates');
refused('outbox_operator', @$_, "it may ask for it: $_->[0]")
  foreach ([ q{SELECT outbox.skip('orders', 0, 1)}, qr/no subscription has read partition 0/ ],
	[ q{SELECT outbox.release_key('orders', 'key')}, qr/key of topic "orders" is not held/ ],
	[ 'SELECT outbox.replay(1)', qr/no dead record 1/ ], [ "SELECT outbox.replay('$id'::uuid)", qr/no call/ ]);
refused('outbox_operator', $_, qr/permission denied/, "but not: $_")
  foreach (
	'TABLE outbox.message', "SELECT outbox.change_status('$id', 'NEW', 'CONFIRMED')",
	"SELECT outbox.send('orders', 'x'::text)", 'DELETE FROM outbox.log');

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
allowed('postgres', qq{
	SET search_path = evil, public, pg_catalog;
	CREATE TABLE public.bait (format text);
	SELECT outbox.attach('public.bait', 'bait', key => 'format');
	INSERT INTO public.bait VALUES ('x');
	SELECT outbox.detach('public.bait');
	SELECT outbox.resend('$id') WHERE false;
	SELECT outbox.adopt();
	SELECT * FROM outbox.stat, outbox.worker, outbox.topic}, 'a superuser under it');
is($node->safe_psql('postgres', "SELECT count(*) FROM evil.victims WHERE who <> 'operator'"),
	'0', 'no function of the attacker ran as somebody else');
allowed('operator', q{SET search_path = evil, pg_catalog; SELECT 'a'::text = 'b'::text},
	'(they do run');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evil.victims'), '1', 'where they may)');

$node->stop;
done_testing();
