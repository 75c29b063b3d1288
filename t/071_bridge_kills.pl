# A bridge that crashes, hangs, or isn't ours costs no session anything: it is
# replaced, nothing is lost, and the order by key holds.

use strict;
use warnings;

use FindBin;
use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap process_state);
use OutboxTest::Install;
use OutboxTest::Kafka;
use OutboxTest::Orders;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{STRESS} ? 120 : 15;

# A session that waited for a bridge would wait for seconds, until that is
# replaced.  This much (ms) any other process may take from it.
my $slow = 2500;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders', 3);
$kafka->create_topic('results', 2);

my $install = private_install();
my $program = "$install->{pkglibdir}/outbox_bridge";
my $node = PostgreSQL::Test::Cluster->new('main', install_path => $install->{path});
$node->init(extra => [ '--encoding=UTF8', '--no-locale' ]);
configure_outbox_node($node, bootstrap => $kafka->bootstrap);
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION outbox');
create_orders($node, result_timeout => '1 min');

my $service = spawn_guarded({}, order_service($kafka));
my $scripts = {
	one => [ 80, 'SELECT place(:c);' ],
	many => [ 10, 'SELECT place(:c) FROM generate_series(1, 40);' ],
	rolled_back => [ 10, 'BEGIN; SELECT place_doomed(:c); ROLLBACK;' ]
};

# Start pgbench; end_load() tells how it went.
sub start_load
{
	my ($rate, $time) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();

	return {
		dir => $dir,
		pid => spawn_guarded(
			{ stdout => "$dir/out", stderr => "$dir/out" },
			order_load(
				$node, $scripts, '-c', 4, '-j', 2, '-R', $rate, '-T', $time,
				'-l', "--log-prefix=$dir/log"))
	};
}

sub load_runs
{
	my ($load) = @_;
	my $state = process_state($load->{pid});

	return defined $state && $state ne 'Z';
}

# No client saw an error, or waited for long.
sub end_load
{
	my ($load, $what) = @_;
	my $transactions = 0;
	my $worst = 0;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(reap($load->{pid}, 0, 600), 0, "$what: no session notices")
	  or diag(slurp_file("$load->{dir}/out"));
	foreach my $log (glob("$load->{dir}/log*"))
	{
		foreach my $line (split /\n/, slurp_file($log))
		{
			my (undef, undef, $time, undef, undef, undef, $lag) = split / /, $line;

			# the time includes by how much it started late
			$transactions++;
			$worst = $time - $lag if $time - $lag > $worst;
		}
	}
	cmp_ok($worst / 1000, '<', $slow, "$what: no session waits");
	note(sprintf('%s: %d transactions, the longest took %.0f ms',
			$what, $transactions, $worst / 1000));
	return;
}

sub confirmed
{
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE status <> 'CONFIRMED'", 0);
}

# A column of a worker's row in outbox.worker
sub worker
{
	my ($kind, $column) = @_;

	return $node->safe_psql('postgres',
		"SELECT $column FROM outbox.worker WHERE kind = '$kind'");
}

# SIGSEGV every second
{
	wait_until('both bridges', sub { my @pids = bridge_pids($node); @pids == 2 });
	my $load = start_load(800, $seconds);
	my $killed = 0;

	while (load_runs($load))
	{
		$killed += kill('SEGV', bridge_pids($node));
		sleep(1);    # the rhythm of it
	}
	end_load($load, 'SIGSEGV every second');
	cmp_ok($killed, '>=', $seconds, "$killed bridges were killed");
	confirmed();
	like(worker($_, 'bridge_last_exit'), qr/terminated by signal 11/,
		"outbox.worker says how the $_\'s bridge ended")
	  foreach (qw(publisher consumer));
	is(worker($_, 'restarts'), 0, "the $_ itself went on") foreach (qw(publisher consumer));

	my $counts = check_orders($node, $kafka);

	cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM rollbacks'),
		'>', 0, 'there were rollbacks');
	diag(sprintf('%d orders, %d records: %d duplicates after %d kills',
			@$counts{qw(orders records copies)}, $killed));
}

# A hang
{
	my $load = start_load(200, 10);
	my %stopped = map { $_ => worker($_, 'bridge_pid') } qw(publisher consumer);
	my $start = time();

	kill('STOP', values %stopped);
	wait_for_value($node, 'postgres',
		"SELECT bridge_pid NOT IN (0, $stopped{publisher}) FROM outbox.worker WHERE kind = 'publisher'",
		't', 60);
	my $taken = time() - $start;

	# a ping a second while it is waited for, and five seconds for an answer
	cmp_ok($taken, '>', 4, 'a busy bridge that hangs is given some time');
	cmp_ok($taken, '<', 15, sprintf('and is replaced, after %.1f s', $taken));
	is(process_state($stopped{publisher}), undef, 'it is killed');

	# an idle one is asked every ten seconds
	wait_for_value($node, 'postgres',
		"SELECT bridge_pid NOT IN (0, $stopped{consumer}) FROM outbox.worker WHERE kind = 'consumer'",
		't', 60);
	cmp_ok(time() - $start, '<', 30, 'so is the other');
	like(worker($_, 'bridge_last_exit'), qr/killed, since it didn't answer/,
		"outbox.worker tells about the $_\'s")
	  foreach (qw(publisher consumer));

	end_load($load, 'SIGSTOP');
	confirmed();
}

# A program that says something, and then nothing
sub talker
{
	my ($bytes) = @_;

	return "#!$^X\nopen(my \$socket, '+<&=', 3) or die;\n"
	  . "syswrite(\$socket, pack('H*', '" . unpack('H*', $bytes) . "'));\nsleep(60);\n";
}

sub new_bridges_are_refused
{
	my ($what, $reason) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	kill('KILL', bridge_pids($node));
	$node->safe_psql('postgres', 'SELECT place(1)');
	foreach my $kind (qw(publisher consumer))
	{
		ok( wait_for_value($node, 'postgres',
				"SELECT bridge_last_exit FROM outbox.worker WHERE kind = '$kind'", $reason),
			"the $kind refuses $what");
	}
	is( $node->safe_psql('postgres',
			"SELECT count(*) > 0 AND bool_and(status = 'NEW') FROM outbox.message WHERE status <> 'CONFIRMED'"),
		't', 'messages wait');
	return;
}

{
	my $original = slurp_file($program);
	my $build = slurp_file("$FindBin::Bin/../.build_id") =~ s/\s//gr;
	my $other = $build =~ tr/0-9/1-90/r;

	is((() = $original =~ /\Q$build\E/g), 1, 'the bridge knows its build');
	replace_program($program, $original =~ s/\Q$build\E/$other/r);
	new_bridges_are_refused('a bridge of another build', qr/is of build $other, .* of build $build/);

	# what it would say itself, if it didn't look
	my $welcome = join('', "\x41", pack('V', 1),
		map { pack('V', length) . "$_\0" } ($other, '2.0.2', ''));

	replace_program($program, talker(pack('V', length $welcome) . $welcome));
	new_bridges_are_refused('a bridge that says so', qr/killed, since it is of build $other/);
	replace_program($program, talker(join('', map { chr(int(rand(256))) } 1 .. 100_000)));
	new_bridges_are_refused('what speaks another language',
		qr/killed, since it (sent|didn't answer HELLO)/);

	replace_program($program, $original);
	confirmed();
	is(worker($_, 'restarts'), 0, "the $_ itself went on") foreach (qw(publisher consumer));
}

my $counts = check_orders($node, $kafka);

is($counts->{recovered}, 0, 'nothing had to be recovered');
unlike(slurp_file($node->logfile), qr/was terminated by signal/, 'no process of the server crashed');
reap($service, 'TERM');
$node->stop('fast');
done_testing();
