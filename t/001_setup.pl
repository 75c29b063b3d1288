# Setting up: CREATE EXTENSION and what it needs, the workers' life in each
# database, and the copies of a database.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run ();
use OutboxTest::Cluster;
use OutboxTest::Guard qw(watch_server);
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = OutboxTest::Mock->new;
$mock->start;

# Not preloaded at first; another library is.
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
$node->append_conf(
	'postgresql.conf', q(
shared_preload_libraries = 'auto_explain'
autovacuum = off
));
watch_server($node->data_dir);
$node->start;

# Workers of a database, from pg_stat_activity
sub workers_are
{
	my ($db, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM pg_stat_activity WHERE backend_type IN)
		  . " ('outbox publisher', 'outbox consumer') AND datname = '$db'",
		$expected) and pass($name);
	return;
}

sub error_of
{
	my ($db, $sql) = @_;
	my ($status, $out, $err) = $node->psql($db, $sql);

	return $status == 0 ? '' : $err;
}

# What the dynamic loader is told to load for a file
sub needed_by
{
	my ($file) = @_;
	my ($out, $err);

	IPC::Run::run([ 'readelf', '-d', $file ], '>', \$out, '2>', \$err)
	  or die "readelf $file: $err";
	return join(' ', $out =~ /\(NEEDED\).*\[(.*)\]/g);
}

subtest 'not preloaded' => sub {
	my $error = error_of('postgres', 'CREATE EXTENSION outbox');

	like($error, qr/the library "outbox" was not loaded when the server started/,
		'CREATE EXTENSION fails');
	my ($line) = $error =~ /HINT:.*restart the server: (shared_preload_libraries = .*)/;
	is($line, q(shared_preload_libraries = 'auto_explain,outbox'),
		'the hint gives the very line');

	# as pg_upgrade does
	is(error_of('postgres', q(LOAD 'outbox')), '', 'the library can be loaded');
	like(error_of('postgres', q(LOAD 'outbox'; CREATE EXTENSION outbox)),
		qr/was not loaded when the server started/, 'which does not help');
	is( $node->safe_psql('postgres',
			q(SELECT count(*) FROM pg_proc WHERE proname LIKE 'outbox%'
			  UNION ALL SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox')),
		"0\n0", 'nothing is left');

	configure_outbox_node($node, bootstrap => $mock->bootstrap);
	$node->append_conf('postgresql.conf', $line);
	$node->restart;
	$node->safe_psql('postgres',
		'CREATE DATABASE a; CREATE DATABASE b; CREATE DATABASE none');
	$node->safe_psql('a', 'CREATE EXTENSION outbox');
	workers_are('a', 2, 'with that line CREATE EXTENSION works');
};

subtest 'a schema of that name' => sub {
	$node->safe_psql('postgres', 'CREATE ROLE somebody; GRANT CREATE ON DATABASE b TO somebody');
	$node->safe_psql('b',
		q(SET ROLE somebody; CREATE SCHEMA outbox; CREATE TABLE outbox.log (trap int)));
	like(error_of('b', 'CREATE EXTENSION outbox'),
		qr/schema "outbox" already exists/, 'CREATE EXTENSION fails');
	like(error_of('b', 'CREATE EXTENSION outbox SCHEMA outbox'),
		qr/must be installed in schema "pg_catalog"/, 'it cannot be told to use it');
	$node->safe_psql('b', 'DROP SCHEMA outbox CASCADE');
	is(error_of('b', 'CREATE EXTENSION outbox; DROP EXTENSION outbox'),
		'', 'without it works');
	is($node->safe_psql('b', q(SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox')),
		'0', 'DROP EXTENSION drops the schema');
};

subtest 'what the programs link' => sub {
	my $dir = $node->config_data('--pkglibdir');

	unlike(needed_by("$dir/outbox.so"), qr/rdkafka/, 'outbox.so: no librdkafka');
	like(needed_by("$dir/outbox_bridge"), qr/librdkafka/, 'the bridge: librdkafka');
	unlike(needed_by("$dir/outbox_bridge"), qr/libpq|libpg/, 'and nothing of PostgreSQL');
};

subtest 'nothing for PUBLIC' => sub {
	my $sql = q(
SELECT kind, name FROM (
	SELECT 'function', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner))
		FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace
	UNION ALL
	SELECT 'relation', oid::regclass::text,
			coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
		FROM pg_class WHERE relnamespace = 'outbox'::regnamespace
	UNION ALL
	SELECT 'column', attrelid::regclass || '.' || attname, attacl
		FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
		WHERE relnamespace = 'outbox'::regnamespace AND attacl IS NOT NULL
	UNION ALL
	SELECT 'type', oid::regtype::text, coalesce(typacl, acldefault('T', typowner))
		FROM pg_type WHERE typnamespace = 'outbox'::regnamespace
			AND typsubscript <> 'array_subscript_handler'::regproc
	UNION ALL
	SELECT 'schema', nspname::text, coalesce(nspacl, acldefault('n', nspowner))
		FROM pg_namespace WHERE nspname = 'outbox'
) AS object (kind, name, acl)
WHERE EXISTS (SELECT FROM aclexplode(acl) WHERE grantee = 0) ORDER BY 1, 2);

	is($node->safe_psql('a', $sql), '', 'no privilege of any kind');
	$node->safe_psql('a', 'GRANT EXECUTE ON FUNCTION outbox.adopt() TO PUBLIC');
	is($node->safe_psql('a', $sql), 'function|outbox.adopt()', '(one would be found)');
	$node->safe_psql('a', 'REVOKE EXECUTE ON FUNCTION outbox.adopt() FROM PUBLIC');
};

subtest 'the workers of a transaction' => sub {
	my $session = $node->background_psql('b');

	$session->query_safe('BEGIN; CREATE EXTENSION outbox');

	# When the launcher has dealt with another database it has seen this one.
	$node->safe_psql('none', 'CREATE EXTENSION outbox');
	workers_are('none', 2, 'elsewhere they start');
	workers_are('b', 0, 'before the commit there are none');
	$session->query_safe('ROLLBACK');
	$node->safe_psql('none', 'DROP EXTENSION outbox');
	workers_are('none', 0, 'elsewhere they stop');
	workers_are('b', 0, 'after a rollback there are none');
	$session->query_safe('BEGIN; CREATE EXTENSION outbox; COMMIT');
	workers_are('b', 2, 'after the commit there are');
	$session->query_safe('BEGIN; DROP EXTENSION outbox; ROLLBACK');
	$session->query_safe(q(SELECT outbox.send('kept', 'm'::text)));
	wait_for_value($node, 'b', 'SELECT status FROM outbox.message', 'SENT')
	  and pass('a DROP EXTENSION that is rolled back stops nothing for good');
	$session->quit;
};

subtest 'again and again' => sub {
	foreach my $round (1 .. 3)
	{
		$node->safe_psql('b', 'DROP EXTENSION outbox');
		workers_are('b', 0, "round $round: DROP EXTENSION stops them");
		$node->safe_psql('b', 'CREATE EXTENSION outbox');
		workers_are('b', 2, "round $round: CREATE EXTENSION starts them");
	}
	$node->safe_psql('b', q(SELECT outbox.send('again', 'm'::text)));
	wait_for_value($node, 'b', 'SELECT status FROM outbox.message', 'SENT')
	  and pass('they work');

	# at rest, too
	set_conf($node, 'outbox.enabled' => 'off');
	wait_for_value($node, 'b',
		q(SELECT state FROM outbox.worker WHERE kind = 'publisher'), qr/^resting: outbox.enabled/);
	$node->safe_psql('b', 'DROP EXTENSION outbox');
	workers_are('b', 0, 'DROP EXTENSION stops them at rest');
	set_conf($node, 'outbox.enabled' => 'on');
	$mock->down;
	$node->safe_psql('b', 'CREATE EXTENSION outbox');
	wait_for_value($node, 'b',
		q(SELECT count(*) FROM outbox.worker WHERE kind = 'publisher' AND state LIKE 'waiting for the Kafka%'), '1');
	$node->safe_psql('b', 'DROP EXTENSION outbox');
	workers_are('b', 0, 'DROP EXTENSION stops them while there is no broker');
	$mock->up;
	wait_for_value($node, 'a',
		q(SELECT count(DISTINCT database) FROM outbox.worker_status() WHERE database <> 0), '1')
	  and pass('no slot stays behind');
};

subtest 'to see' => sub {
	is( $node->safe_psql('postgres',
			q(SELECT backend_type, application_name, datname FROM pg_stat_activity
			  WHERE backend_type LIKE 'outbox%' ORDER BY 1)),
		"outbox consumer|outbox consumer|a\noutbox launcher|outbox launcher|\noutbox publisher|outbox publisher|a",
		'pg_stat_activity names them');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM pg_stat_activity
		  WHERE backend_type LIKE 'outbox%' AND wait_event IS NOT NULL), '3')
	  and pass('and what they wait for');
	is( $node->safe_psql('a',
			q(SELECT kind, pid IS NOT NULL, since IS NOT NULL FROM outbox.worker ORDER BY 1)),
		"consumer|t|t\nlauncher|t|t\npublisher|t|t", 'outbox.worker lists them');
};

subtest 'restarts' => sub {
	my $pid_of = q(SELECT pid FROM outbox.worker WHERE kind = 'publisher');

	foreach my $round (1 .. 3)
	{
		my $pid = $node->safe_psql('a', $pid_of);
		my $start = time();

		$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
		wait_for_value($node, 'a', "$pid_of AND pid <> $pid", qr/^\d+$/);
		my $took = time() - $start;
		my $least = 0.9 * 2**($round - 1);

		# From below only: a busy machine may take any time.
		cmp_ok($took, '>', $least, sprintf('a terminated worker comes back, after %.1f s', $took));
		is($node->safe_psql('a', q(SELECT restarts FROM outbox.worker WHERE kind = 'publisher')),
			$round, 'and is counted');
	}

	my $launcher = $node->safe_psql('a', q(SELECT pid FROM outbox.worker WHERE kind = 'launcher'));
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
	wait_for_value($node, 'a',
		"SELECT count(*) FROM outbox.worker WHERE kind = 'launcher' AND pid <> $launcher", '1')
	  and pass('so does the launcher');
	workers_are('a', 2, 'and with it the workers');
	$node->safe_psql('a', q(SELECT outbox.send('restarts', 'm'::text)));
	wait_for_value($node, 'a', q(SELECT status FROM outbox.message WHERE topic = 'restarts'), 'SENT')
	  and pass('they work');
};

subtest 'which databases' => sub {
	$node->safe_psql('postgres', q(CREATE DATABASE "Odd, ""one"));
	$node->safe_psql('Odd, "one', 'CREATE EXTENSION outbox');
	$node->safe_psql('b', 'CREATE EXTENSION outbox');
	workers_are($_, 2, "$_ has workers") foreach ('Odd, "one', 'b');

	$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE b');
	workers_are('copy', 2, 'a template brings the extension');
	workers_are('b', 2, 'and gets its workers again');

	$node->restart;
	workers_are($_, 2, "$_ is found after a restart") foreach ('a', 'b', 'copy', 'Odd, "one');

	set_conf($node, 'outbox.databases' => 'a, "Odd, ""one"');
	workers_are($_, 0, "$_ is not in outbox.databases") foreach ('b', 'copy');
	workers_are($_, 2, "$_ is") foreach ('a', 'Odd, "one');
	$node->restart;
	workers_are($_, 2, "$_ is after a restart") foreach ('a', 'Odd, "one');
	workers_are($_, 0, "$_ is not after a restart") foreach ('b', 'copy');
	set_conf($node, 'outbox.databases' => '');
	workers_are($_, 2, "$_ counts again") foreach ('b', 'copy');
	like(error_of('postgres', q(ALTER SYSTEM SET outbox.databases = 'a,,')),
		qr/List syntax is invalid/, 'a malformed list is refused');
};

subtest 'where nobody connects' => sub {
	my $commits = q(SELECT string_agg(datname || '=' || xact_commit, ' ' ORDER BY datname)
		FROM pg_stat_database WHERE datname IN ('template0', 'template1', 'b', 'copy'));

	$node->safe_psql('postgres',
		'ALTER DATABASE b IS_TEMPLATE true; ALTER DATABASE copy ALLOW_CONNECTIONS false');
	workers_are('b', 0, 'a template has no workers');
	workers_are('copy', 0, 'nor has a database without connections');
	$node->stop;
	$node->start;
	my $before = $node->safe_psql('postgres', $commits);
	my $none = q(SELECT xact_commit FROM pg_stat_database WHERE datname = 'none');
	my $probed = $node->safe_psql('postgres', $none);

	# A probe leaves a transaction behind, where it has looked.
	$node->restart;
	wait_for_value($node, 'postgres', "SELECT ($none) > $probed", 't');
	workers_are($_, 2, "$_ has workers after a restart") foreach ('a', 'Odd, "one');
	is($node->safe_psql('postgres', $commits), $before, 'nobody has looked into the others');
	workers_are($_, 0, "$_ has none") foreach ('b', 'copy', 'template1');

	$node->safe_psql('postgres',
		'ALTER DATABASE b IS_TEMPLATE false; ALTER DATABASE copy ALLOW_CONNECTIONS true');
	workers_are($_, 2, "$_ gets them") foreach ('b', 'copy');
	$node->safe_psql('postgres', $_)
	  foreach ('DROP DATABASE copy', q(DROP DATABASE "Odd, ""one"));
};

subtest 'too few slots' => sub {
	my $log = -s $node->logfile;

	$node->append_conf('postgresql.conf',
		"max_worker_processes = 3\nmax_logical_replication_workers = 0");
	$node->restart;

	# The launcher's, and two for two databases that want four.
	wait_for_value($node, 'a',
		q(SELECT count(*) FROM outbox.worker_status()
		  WHERE state LIKE '%no free background worker slot%'
			AND last_error LIKE '%max_worker_processes%'), '2')
	  and pass('outbox.worker tells');
	like(slurp_file($node->logfile, $log),
		qr/WARNING: .*no free background worker slot\n.*HINT: .*"max_worker_processes"/,
		'so does the log, with the hint');

	my $lucky = $node->safe_psql('postgres',
		q(SELECT datname FROM pg_stat_activity WHERE backend_type = 'outbox publisher'
		  OR backend_type = 'outbox consumer' LIMIT 1));
	my $other = $lucky eq 'a' ? 'b' : 'a';
	$node->safe_psql($lucky, 'DROP EXTENSION outbox');
	workers_are($other, 2, 'it heals when slots are free');
	is( $node->safe_psql($other,
			q(SELECT count(*) FROM outbox.worker WHERE state LIKE '%no free%')),
		'0', 'which shows');

	$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
	$node->restart;
	wait_for_value($node, $other,
		q(SELECT count(*) FROM outbox.worker WHERE kind = 'launcher'
		  AND last_error LIKE '%max_worker_processes%'), '1')
	  and pass('none at all shows, too');
	$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
	$node->restart;
	$node->safe_psql($lucky, 'CREATE EXTENSION outbox');
	workers_are($_, 2, "$_ has workers again") foreach ('a', 'b');
};

subtest 'copies' => sub {
	my $dump = "$PostgreSQL::Test::Utils::tmp_check/a.dump";
	my $parked = q(SELECT count(*) FROM outbox.worker WHERE state LIKE 'parked: %');
	my $new = q(SELECT count(*) FROM outbox.message WHERE topic = 'copies' AND status = 'NEW');
	my $log = -s $node->logfile;

	# Messages that every copy has, and that nobody has published.
	set_conf($node, 'outbox.enabled' => 'off');
	$node->safe_psql('a',
		q(SELECT outbox.set_topic('copies', 'replies');
		  SELECT outbox.send('copies', 'm' || n) FROM generate_series(1, 3) AS n));
	wait_for_value($node, 'a',
		q(SELECT count(*) FROM outbox.worker WHERE state LIKE 'resting: outbox.enabled%'), '2');
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('a') ], 'pg_dump');
	$node->safe_psql('postgres', 'CREATE DATABASE restored');
	$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
	$node->safe_psql('postgres', 'CREATE DATABASE cloned TEMPLATE a');
	set_conf($node, 'outbox.enabled' => 'on');

	wait_for_value($node, 'a', $new, '0');
	is(scalar($mock->consume('copies')), 3, 'the original publishes');
	foreach my $copy ('restored', 'cloned')
	{
		wait_for_value($node, $copy, $parked, '2') and pass("$copy is parked");
		is($node->safe_psql($copy, $new), '3', 'its messages wait');
		is($node->safe_psql($copy, 'SELECT parked IS NOT NULL FROM outbox.stat'),
			't', 'outbox.stat tells');
		like(slurp_file($node->logfile, $log),
			qr/WARNING:  outbox is parked in database "$copy": .*\n.*HINT:  Call outbox.adopt\(\)/,
			'so does the log, with what to do');
	}
	is(scalar($mock->consume('copies')), 3, 'nothing has come from them');
	is($node->safe_psql('restored', q(SELECT result_topic FROM outbox.topic WHERE topic = 'copies')),
		'replies', 'the settings of topics are restored');

	foreach my $copy ('restored', 'cloned')
	{
		$node->safe_psql($copy, 'SELECT outbox.adopt()');
		wait_for_value($node, $copy, $new, '0') and pass("adopt() makes $copy go on");
	}
	is(scalar($mock->consume('copies')), 9, 'with its messages');
	$node->restart;
	workers_are($_, 2, "$_ has workers after a restart") foreach ('restored', 'cloned');
	$node->safe_psql('restored', q(SELECT outbox.send('copies', 'more'::text)));
	wait_for_value($node, 'restored', $new, '0') and pass('and does not park again');

	# without messages there is nothing to be published twice
	$node->safe_psql('b', 'DROP EXTENSION outbox; CREATE EXTENSION outbox');
	$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('b') ], 'pg_dump');
	$node->safe_psql('postgres', 'CREATE DATABASE empty');
	$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('empty'), $dump ], 'pg_restore');
	$node->safe_psql('empty', q(SELECT outbox.send('copies', 'more'::text)));
	wait_for_value($node, 'empty', $new, '0') and pass('a copy of an empty log adopts itself');
};

subtest 'pg_upgrade' => sub {
	my $new = new_outbox_node('upgraded', bootstrap => $mock->bootstrap, start => 0);
	my $dir = $node->config_data('--bindir');
	my $messages = q(SELECT count(*) FROM outbox.message);

	my $before = $node->safe_psql('a', $messages);
	$node->stop;
	command_ok(
		[
			'pg_upgrade', '--no-sync', '-d', $node->data_dir, '-D', $new->data_dir,
			'-b', $dir, '-B', $dir, '-s', $new->host, '-p', $node->port, '-P', $new->port
		],
		'it runs');
	$new->start;
	is($new->safe_psql('a', $messages), $before, 'the messages are there');
	wait_for_value($new, 'a',
		q(SELECT count(*) FROM outbox.worker WHERE state LIKE 'parked: %'), '2')
	  and pass('parked: the old server may be started again');
	$new->safe_psql('a', q(SELECT outbox.adopt(); SELECT outbox.send('upgraded', 'm'::text)));
	wait_for_value($new, 'a', q(SELECT status FROM outbox.message WHERE topic = 'upgraded'), 'SENT')
	  and pass('adopt() makes it go on');
};

$mock->stop;
done_testing();
