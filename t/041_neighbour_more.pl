# More about making way: who may, transactions, ends without warning, what a
# bridge has open, and a database that never waits for Kafka.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Guard qw(process_state);
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('orders', 2);
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres']);

sub workers_are
{
	my ($db, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox%' AND datname = '$db'",
		$expected) and pass($name);
	return;
}

sub works
{
	my ($db, $name) = @_;
	my $id = $node->safe_psql($db, "SELECT outbox.send('orders', 'm'::text)");

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, $db, "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT')
	  and pass($name);
	return;
}

# Within a second, says the promise.  The time of the same command where there
# is no extension tells how busy the machine is, and is added three times.
my $busy;

sub soon
{
	my ($name, $code) = @_;
	my $start = time();

	$code->();
	my $took = time() - $start;
	my $limit = 1 + 3 * $busy;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok($took, '<', $limit, sprintf('%s: %.3f s of %.3f', $name, $took, $limit));
	return;
}

$node->safe_psql('postgres', q(
	CREATE ROLE owner CREATEDB; CREATE ROLE other CREATEDB;
	CREATE DATABASE mine OWNER owner));
my $tablespace = PostgreSQL::Test::Utils::tempdir;
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$tablespace'");
$node->safe_psql('postgres', 'GRANT CREATE ON TABLESPACE elsewhere TO owner, other');
$node->safe_psql('mine', 'CREATE EXTENSION outbox');
workers_are('mine', 2, 'a database of somebody has workers');

my $start = time();
$node->safe_psql('postgres', 'CREATE DATABASE bare');
$node->safe_psql('postgres', 'DROP DATABASE bare');
$busy = time() - $start;

subtest 'who may not' => sub {
	my $pids = join(' ', outbox_pids($node));
	my %commands = (
		'DROP DATABASE mine' => qr/must be owner of database mine/,
		'ALTER DATABASE mine RENAME TO his' => qr/must be owner of database mine/,
		'ALTER DATABASE mine SET TABLESPACE elsewhere' => qr/must be owner of database mine/,
		'CREATE DATABASE his TEMPLATE mine' => qr/permission denied to copy database "mine"/);

	foreach my $command (sort keys %commands)
	{
		my ($status, $out, $err) = $node->psql('postgres', "SET ROLE other;\n$command");

		like($err, $commands{$command}, "$command is refused");
	}
	is(join(' ', outbox_pids($node)), $pids, 'no worker was stopped');
};

subtest 'who may' => sub {
	my $as_owner = sub {
		my ($db, $command) = @_;

		soon("$command in $db", sub { $node->safe_psql($db, "SET ROLE owner;\n$command") });
	};

	$as_owner->('postgres', 'ALTER DATABASE mine RENAME TO mine2');
	workers_are('mine2', 2, 'the workers are back');
	$as_owner->('postgres', 'CREATE DATABASE copy TEMPLATE mine2');
	workers_are($_, 2, "the workers of $_ are there") foreach ('mine2', 'copy');

	# Its own sessions are in the way of the workers' database, too.
	$as_owner->('mine2', 'CREATE DATABASE copy2 TEMPLATE mine2');
	workers_are($_, 2, "the workers of $_ are there") foreach ('mine2', 'copy2');
	$as_owner->('postgres', 'ALTER DATABASE copy2 SET TABLESPACE elsewhere');
	workers_are('copy2', 2, 'the workers are back');
	$as_owner->('postgres', "DROP DATABASE $_") foreach ('copy', 'copy2');
	works('mine2', 'the workers work');
};

subtest 'in a transaction' => sub {
	my $session = $node->background_psql('postgres');

	foreach my $end ('ROLLBACK', 'COMMIT')
	{
		soon('ALTER DATABASE RENAME',
			sub { $session->query_safe('BEGIN; ALTER DATABASE mine2 RENAME TO mine3') });

		# When the launcher has dealt with another database, it has seen this.
		$node->safe_psql('postgres', 'DROP EXTENSION outbox; CREATE EXTENSION outbox');
		workers_are('postgres', 2, 'another database gets its workers');
		workers_are('mine2', 0, 'this one has none while the command is not decided');
		$session->query_safe($end);
		my $name = $end eq 'COMMIT' ? 'mine3' : 'mine2';
		workers_are($name, 2, "after $end they are back");
		works($name, 'and work');
	}
	$session->quit;
};

subtest 'what a bridge has open' => sub {
	works('postgres', 'it runs');
	my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
	my %death_pipe = map { $_ => 1 } grep { defined && /^pipe:/ }
	  map { readlink } glob("/proc/$postmaster/fd/*");

	foreach my $pid (bridge_pids($node))
	{
		my %fds = map { m{/(\d+)$} ? ($1 => readlink($_) // '') : () } glob("/proc/$pid/fd/*");
		my @strange =
		  grep { !m{^(/dev/null|socket:\[\d+\]|pipe:\[\d+\]|anon_inode:\S+|/dev/u?random)$} || $death_pipe{$_} }
		  values %fds;

		is(join(' ', @strange), '', "bridge $pid: sockets, events and pipes of its own");
		like($fds{3}, qr/^socket:/, 'of the server it has one socket');
		is($fds{$_}, '/dev/null', "descriptor $_ leads nowhere") foreach (0 .. 2);
	}
};

subtest 'the postmaster is killed' => sub {
	works('postgres', 'they work');
	my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');
	my @workers = outbox_pids($node);
	my @bridges = bridge_pids($node);

	cmp_ok(scalar(@workers), '>=', 5, 'launcher and workers run');
	cmp_ok(scalar(@bridges), '>=', 2, 'and bridges');
	kill('STOP', $bridges[0]);
	kill('KILL', $postmaster);
	ok(wait_for_exit($_), "process $_ has ended") foreach (@workers, @bridges);
	kill9_server($node);
	start_again($node);
	works('postgres', 'after the next start they work');
};

# Sees a worker's transaction that is open for longer than a worker needs.
sub no_transactions
{
	my ($name) = @_;
	my $seen = '';

	foreach my $look (1 .. 20)
	{
		$seen .= $node->safe_psql('postgres', q(
			SELECT backend_type, xact_start, backend_xid, backend_xmin FROM pg_stat_activity
			WHERE backend_type LIKE 'outbox%' AND (backend_xmin IS NOT NULL OR xact_start IS NOT NULL)
				AND coalesce(xact_start, state_change, backend_start) < clock_timestamp() - interval '1 s'));
		sleep(0.1);
	}
	is($seen, '', $name);
	return;
}

subtest 'the application never waits for Kafka' => sub {
	my $seconds = sub {
		my $start = time();

		$node->safe_psql('postgres', 'INSERT INTO orders SELECT n FROM generate_series(1, 5000) AS n');
		return time() - $start;
	};

	$node->safe_psql('postgres',
		q(CREATE TABLE orders (n int); SELECT outbox.attach('orders', 'orders')));
	$seconds->();
	my $up = $seconds->();
	wait_for_value($node, 'postgres', 'SELECT backlog FROM outbox.stat', '0');

	my %away = (down => sub { $mock->down }, stopped => sub { $mock->pause });
	my %back = (down => sub { $mock->up }, stopped => sub { $mock->resume });
	foreach my $kind ('down', 'stopped')
	{
		$away{$kind}->();
		my $took = $seconds->();

		# Far from what a wait for the broker would take.
		cmp_ok($took, '<', 5 + 10 * $up,
			sprintf('%s: 5000 INSERTs take %.3f s, and %.3f s with the broker', $kind, $took, $up));
		no_transactions("$kind: no worker has a transaction open");
		$node->safe_psql('postgres', 'DELETE FROM orders WHERE n % 2 = 0');
		my ($status, $out, $vacuum) = $node->psql('postgres', 'VACUUM (VERBOSE) orders');
		like($vacuum, qr/tuples: [1-9]\d* removed, \d+ remain, 0 are dead but not yet removable/,
			"$kind: nothing holds VACUUM back");
		cmp_ok($node->safe_psql('postgres', 'SELECT backlog FROM outbox.stat'),
			'>=', 5000, "$kind: the backlog shows");
		$back{$kind}->();
		wait_for_value($node, 'postgres', 'SELECT backlog FROM outbox.stat', '0')
		  and pass("$kind: it drains by itself");
	}
};

subtest 'ack_timeout' => sub {
	set_conf($node, 'outbox.ack_timeout' => '300ms');
	$mock->rtt(1500);
	my $id = $node->safe_psql('postgres', q(SELECT outbox.send('orders', 'slow'::text)));
	wait_for_value($node, 'postgres',
		q(SELECT state, error FROM outbox.topic WHERE topic = 'orders'),
		qr/^failing\|no acknowledgement within 300 ms$/)
	  and pass('a reload applies it');
	$mock->rtt(0);
	set_conf($node, 'outbox.ack_timeout' => '10s');
	wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'SENT')
	  and pass('and takes it back');
};

$node->stop;
$mock->stop;
done_testing();
