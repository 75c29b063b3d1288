# The seed case of the pattern on Apache Kafka, with clients that aren't ours:
# a service that takes the record's key as the message id and its value as the
# order, and answers with that key and SUCCESS or FAILED.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run ();
use OutboxTest::Cluster;
use OutboxTest::Guard qw(reap spawn_guarded);
use OutboxTest::Kafka;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders', 3);
$kafka->create_topic('results', 2);
$kafka->create_topic('keyed', 3);
$kafka->create_topic('keyed-results', 1);
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my @kcat = ('kcat', '-q', '-b', $kafka->bootstrap);

# What the service does: it refuses an order of ten and more.  A kcat for each
# answer, since it reads its input in blocks.
my $answer = <<'EOS';
tab=$(printf '\t')
while IFS="$tab" read -r key order; do
	case $order in
		*'"quantity":'[0-9],*) result=SUCCESS ;;
		*) result=FAILED ;;
	esac
	printf '%s\t%s\n' "$key" "$result" | kcat -q -b "$1" -P -t results -K "$tab"
done
EOS

# Programs joined by pipes, as a shell does it; returns their pids.
sub start_pipeline
{
	my @commands = @_;
	my ($input, @pids);

	while (my $command = shift @commands)
	{
		my ($read, $write);
		my %fds = (stderr => "$PostgreSQL::Test::Utils::tmp_check/service.log");

		pipe($read, $write) or die "pipe: $!" if @commands;
		$fds{stdin} = $input if defined $input;
		$fds{stdout} = $write if defined $write;
		push @pids, spawn_guarded(\%fds, @$command);
		$input = $read;
	}
	return @pids;
}

subtest 'the key is the id' => sub {
	my @service = start_pipeline(
		[ @kcat, '-C', '-u', '-o', 'beginning', '-t', 'orders', '-f', '%k\t%s\n' ],
		[ 'sh', '-c', $answer, 'service', $kafka->bootstrap ]);

	$node->safe_psql('postgres', q(
		CREATE TABLE orders (id serial PRIMARY KEY, product_id int, quantity int, note text);
		SELECT outbox.set_topic('orders', result_topic => 'results');
		SELECT outbox.attach('orders', 'orders',
			columns => '{id, product_id as productId, quantity, note}')));

	# one a transaction, many in one, and one that is rolled back
	$node->safe_psql('postgres',
		"INSERT INTO orders (product_id, quantity, note) VALUES (1, $_, 'caf\xc3\xa9')")
	  foreach (1, 12, 2);
	$node->safe_psql('postgres',
		q(INSERT INTO orders (product_id, quantity) SELECT 2, n FROM generate_series(1, 20) AS n));
	$node->safe_psql('postgres',
		q(BEGIN; INSERT INTO orders (product_id, quantity) VALUES (3, 1); ROLLBACK));

	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE status IN ('CONFIRMED', 'FAILED')), '23');
	is( $node->safe_psql('postgres',
			q(SELECT status, count(*), min(result), bool_and((payload::json ->> 'quantity')::int < 10)
			  FROM outbox.message GROUP BY status ORDER BY status)),
		"CONFIRMED|11|SUCCESS|t\nFAILED|12|FAILED|f",
		'what it accepts is CONFIRMED, what it refuses is FAILED');
	is( $node->safe_psql('postgres',
			q(SELECT count(*) FROM outbox.message AS m FULL JOIN orders AS o
			  ON (m.payload::json ->> 'id')::int = o.id
			  WHERE m.id IS NULL OR o.id IS NULL OR m.attempts <> 1)),
		'0', 'each order once');

	my @records = $kafka->consume('orders');
	is(scalar(@records), 23, 'each was published once');
	my ($first) = grep { $_->{value} =~ /"id":1,/ } @records;
	is($first->{value}, qq({"id":1,"productId":1,"quantity":1,"note":"caf\xc3\xa9"}),
		'its value is the JSON of the row');
	is( $first->{key},
		$node->safe_psql('postgres',
			q(SELECT id FROM outbox.message WHERE payload::json ->> 'id' = '1')),
		'its key is the message id');
	is($first->{header}{id}, $first->{key}, 'which is in header id, too');

	is( $node->safe_psql('postgres',
			q(SELECT backlog, published, confirmed, failed, dead, results_applied,
				results_repeated + results_contrary + results_unknown + results_bad FROM outbox.stat)),
		'0|23|11|12|0|23|0', 'outbox.stat counts them');
	reap($_, 'TERM') foreach (@service);
};

subtest 'a key of its own' => sub {
	my ($status, $out, $notice) = $node->psql('postgres', q(
		SELECT outbox.set_topic('keyed', 'keyed-results');
		CREATE TABLE keyed (customer text, quantity int);
		SELECT outbox.attach('keyed', 'keyed', key => 'customer')));

	is($status, 0, 'attached');
	like($notice, qr/NOTICE: .*header/s, 'with a NOTICE: services must echo a header');
	$node->safe_psql('postgres',
		q(INSERT INTO keyed VALUES ('ann', 1), ('bob', 2), ('ann', 3)));

	# A header's value may hold any byte, a line's end too.
	my ($end, $records) = ('-- end of record', '');
	wait_until(
		'the records are there',
		sub {
			$records = '';
			IPC::Run::run(
				[ @kcat, '-C', '-e', '-o', 'beginning', '-t', 'keyed', '-f', "%k|%s|%h$end" ],
				'>', \$records, IPC::Run::timeout(60));
			return (() = $records =~ /\Q$end\E/g) == 3;
		});
	my %answers = (1 => 'SUCCESS', 2 => '{"status": "FAILED", "error": "sold out"}', 3 => '"SUCCESS"');
	foreach my $record (split /\Q$end\E/, $records)
	{
		my ($key, $quantity) = $record =~ /^(\w+)\|.*"quantity":(\d)/;
		my ($id) = $record =~ /\bid=([0-9a-f-]{36})/;

		IPC::Run::run(
			[
				@kcat, '-P', '-t', 'keyed-results', '-k', $key,
				'-H', "reply_to_message_id=$id"
			],
			'<', \$answers{$quantity}, IPC::Run::timeout(60));
	}
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE topic = 'keyed' AND status IN ('CONFIRMED', 'FAILED')),
		'3');
	is( $node->safe_psql('postgres',
			q(SELECT key, status, error FROM outbox.message WHERE topic = 'keyed' ORDER BY id)),
		"ann|CONFIRMED|\nbob|FAILED|sold out\nann|CONFIRMED|",
		'the header reply_to_message_id is enough');
};

$node->stop;
$kafka->stop;
done_testing();
