# Nobody waits for retention, or for what maintains the tables: INSERTs and
# readers go on through truncations, VACUUM, a base backup and pg_dump.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run ();
use OutboxTest::Clock;
use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A lock is held for this long, in seconds, and nobody may wait for so many
my $held = 8;
my $longest = 4;

# A statement that waits for a lock for ever is a failure, too
$ENV{PGOPTIONS} = '-c statement_timeout=20s';

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('orders', 1);
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	init => { allows_streaming => 1 },
	conf => "outbox.retention = '14min'",
	start => 0);
start_with_clock($node);

my $dir = PostgreSQL::Test::Utils::tempdir;

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sub script
{
	my ($name, $text) = @_;

	append_to_file("$dir/$name", $text);
	return "$dir/$name";
}

sql(q(
	CREATE EXTENSION outbox;
	CREATE TABLE orders (id bigserial, note text);
	SELECT outbox.attach('orders', 'orders')));
my @scripts = (
	script('insert.sql', "INSERT INTO orders (note) VALUES ('one more');\n"),
	script('read.sql',
		"SELECT status FROM outbox.message WHERE id = outbox.message_id_at(now());\n"));

# A long session's timeouts would see the time that is pushed on.
sub start_bench
{
	my ($prefix) = @_;
	local $ENV{PGOPTIONS} = '';

	return IPC::Run::start(
		[
			'pgbench', '-n', '-c', '4', '-j', '1', '-T', '600', '-l', '--log-prefix', $prefix,
			'-R', '400', (map { ('-f', $_) } @scripts), $node->connstr('postgres')
		],
		'>', '/dev/null', '2>', "$prefix.err");
}

# Inserts and reads meanwhile, and looks at the longest of each, in seconds
sub while_doing
{
	my ($what, $code) = @_;
	my $prefix = "$dir/" . $what =~ s/\W/_/gr;
	my $bench = start_bench($prefix);

	wait_until('pgbench works', sub { -s (glob("$prefix.*[0-9]"))[0] });
	$code->();
	$bench->signal('INT');
	$bench->finish;

	my @worst = (0, 0);
	foreach my $file (glob("$prefix.*[0-9]"))
	{
		open(my $log, '<', $file) or die "$file: $!";
		while (<$log>)
		{
			my (undef, undef, $us, $script, undef, undef, $lag) = split;
			$us -= $lag // 0;
			$worst[$script] = $us / 1e6 if $us / 1e6 > $worst[$script];
		}
	}
	is(slurp_file("$prefix.err") =~ s/^pgbench \(.*\n//mr, '', "$what: no errors");
	cmp_ok($worst[0], '<', $longest, "$what: no INSERT waited ($worst[0] s)");
	cmp_ok($worst[1], '<', $longest, "$what: no reader waited ($worst[1] s)");
	return;
}

sub minutes
{
	my ($n) = @_;
	push_clock($node, 60 * $n);
	sql('SELECT outbox.config_changed()');
	return;
}

sub old_ones
{
	return "SELECT count(*) FROM outbox.log WHERE segment >= 0
		AND id < outbox.message_id_at(clock_timestamp() - interval '16 min')";
}

while_doing('truncation', sub {
	foreach my $minute (1 .. 40)
	{
		minutes(1);
		wait_for_value($node, 'postgres', old_ones(), '0') if $minute % 4 == 0;
	}
});

# One reader keeps its lock, the others must not queue behind a TRUNCATE
while_doing('truncation held up', sub {
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN; SELECT count(*) FROM outbox.message');
	minutes(20);
	wait_for_value($node, 'postgres',
		"SELECT retention_waits_for LIKE '%process %' AND clock_timestamp()
			> retention_waits_since + interval '$held s' FROM outbox.stat", 't');
	$session->query_safe('COMMIT');
	$session->quit;
	wait_for_value($node, 'postgres', old_ones(), '0');
});

while_doing('vacuum', sub {
	sql('DELETE FROM outbox.log');
	$node->safe_psql('postgres', 'VACUUM (ANALYZE)');
	$node->safe_psql('postgres', 'VACUUM (FREEZE, INDEX_CLEANUP on)');
});

while_doing('base backup', sub { $node->backup('backup') });

while_doing('pg_dump', sub {
	$node->command_ok(
		[ 'pg_dump', '-Fd', '-j', '2', '-f', "$dir/dump", $node->connstr('postgres') ], 'pg_dump');
	minutes(20);
	$node->command_ok(
		[ 'pg_dump', '-Fd', '-j', '2', '-f', "$dir/dump2", $node->connstr('postgres') ], 'pg_dump');
});

# What is set for a table is there after a restore, and so is autovacuum's part
my $settings = "SELECT string_agg(c.relname || ' ' || coalesce(c.reloptions::text, ''), ', '
		ORDER BY c.relname)
	FROM pg_class AS c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r'";
sql('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), "$dir/dump2" ], 'pg_restore');
is($node->safe_psql('restored', $settings), sql($settings), 'the tables are set as they were');

done_testing();
$node->stop;
$mock->stop;
